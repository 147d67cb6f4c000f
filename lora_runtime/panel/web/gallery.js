// <lora-gallery base="…/lora-runtime" for="#prompt textarea" model="…">: the LoRAs as cards. `for` is a CSS selector of the prompt,
// `model` the name of the one that is chosen. Of thousands of cards those in sight are in the page, each at its place.
import {answerOf, button, CardWindow, filesChanged, playFilms} from "./card_window.js";
import {make, t, told} from "./dom.js";
import {PromptArea} from "./prompt.js";
import {changeOfTag, namesInTags, withRenamed} from "./words.js";

const STYLE = new URL("gallery.css", import.meta.url).href;
const BASE = new URL("../..", import.meta.url).href;
const PART = 60; // cards that are fetched at once
const LEAST_WIDTH = 150; // pixels of a card
const GAP = 12; // pixels between cards
const AROUND = 500; // pixels above and below what is seen in which cards are there too
const TYPING_MS = 150;
const KEPT = ["hide", "blur"]; // what the browser keeps of a person's wishes

class LoraGallery extends HTMLElement {
    static observedAttributes = ["model"];

    constructor() {
        super();
        this.on = {favourites: false, fits: false, recent: false};
        this.families = new Set();
        this.total = 0;
        this.parts = new Map(); // by number: PART cards each; null while they are fetched, "failed" where they could not be
        this.cells = new Map(); // by place: the elements that are in the page
        this.asked = 0; // the number of the last question; answers to earlier ones are dropped
        this.current = 0; // the card that Tab leads to
        this.going = 0; // the number of the last move by the keyboard
        this.columns = 1;
        this.width = 0; // of a card
        this.height = 0; // of a row with the gap below it
        this.touched = false; // whether somebody was in the prompt, whose cursor then says where a tag comes in
        this.names = new Set(); // of the tags in the prompt
        this.prompt = new PromptArea(() => this.getAttribute("for"), () => this.mark());
        this.window = new CardWindow(this);
        this.drawing = 0;
        this.draw = () => {
            if (!this.drawing) this.drawing = requestAnimationFrame(() => this.render());
        };
        this.intoPrompt = (event) => {
            if (event.target === this.prompt.area) this.touched = true;
        };
        this.sized = new ResizeObserver(this.draw);
    }

    connectedCallback() {
        if (!this.list) this.build();
        this.prompt.start();
        this.sized.observe(this.list);
        this.sized.observe(this.probe); // which has its height once the style sheet is there
        document.addEventListener("scroll", this.draw, {capture: true, passive: true});
        document.addEventListener("focusin", this.intoPrompt);
        window.addEventListener("resize", this.draw);
        this.reload();
    }

    disconnectedCallback() {
        this.prompt.stop();
        this.sized.disconnect();
        document.removeEventListener("scroll", this.draw, {capture: true});
        document.removeEventListener("focusin", this.intoPrompt);
        window.removeEventListener("resize", this.draw);
    }

    attributeChangedCallback(name, before, now) {
        if (this.list && before !== now) this.reload({stay: true});
    }

    build() {
        const toggle = (key, text, hint) => button(t(text), (event) => {
            this.on[key] = !this.on[key];
            event.currentTarget.setAttribute("aria-pressed", String(this.on[key]));
            this.reload();
        }, {"aria-pressed": "false", title: t(hint)});
        this.search = make("input", {
            type: "search", class: "lr-search", id: "lr-search", placeholder: t("Search: words of a name or a family"),
            "aria-label": t("Search LoRAs"), autocomplete: "off", spellcheck: false,
        });
        this.search.addEventListener("input", () => {
            clearTimeout(this.typing);
            this.typing = setTimeout(() => this.reload(), TYPING_MS);
        });
        this.folder = make("select", {class: "lr-folder", "aria-label": t("Folder"), onchange: () => this.reload()});
        this.chips = make("div", {class: "lr-families", role: "group", "aria-label": t("Model families")});
        this.opener = button(t("Bin"), (event) => this.window.bin(event.currentTarget), {title: t("What was thrown away, and putting it back")});
        this.counted = make("p", {class: "lr-counted", role: "status"});
        this.said = make("div", {class: "lr-said", role: "status"});
        this.list = make("div", {class: "lr-cards", role: "list", "aria-label": t("LoRAs")});
        this.probe = make("i", {class: "lr-probe", "aria-hidden": "true"});
        this.refused = make("details", {class: "lr-refused", hidden: true});
        this.list.addEventListener("keydown", (event) => this.keyed(event));
        this.list.addEventListener("focusin", (event) => {
            const cell = event.target.closest(".lr-cell");
            if (cell) this.enter(cell.place);
        });
        this.addEventListener("click", (event) => this.clicked(event));
        playFilms((element) => element.closest(".lr-cell")?.querySelector("video"));
        this.classList.add("lr-gallery");
        this.append(
            make("link", {rel: "stylesheet", href: STYLE}),
            make("h2", {}, t("LoRAs")),
            make(
                "div", {class: "lr-filters", role: "group", "aria-label": t("Which LoRAs are shown")},
                this.search, this.folder,
                toggle("favourites", "★ Favourites", "Only those with a star"),
                toggle("fits", "Fits this model", "Only those that were made for the model that is chosen"),
                toggle("recent", "Last used first", "Those that were used last come first"),
                this.chips, this.opener, this.wishes(),
            ),
            this.counted, this.said, this.list, this.probe, this.refused,
        );
    }

    /** Return the fields for what is hidden and blurred, which the browser keeps. */
    wishes() {
        const field = (key, label, hint) => {
            const input = make("input", {type: "text", value: kept(key), placeholder: hint, spellcheck: false, autocomplete: "off"});
            input.addEventListener("change", () => {
                keep(key, input.value.trim());
                this.reload();
            });
            return make("label", {}, t(label), input);
        };
        return make(
            "details", {class: "lr-wishes"},
            make("summary", {}, t("Hide and blur")),
            field("hide", "Folders whose LoRAs have no cards", "old, style/trial*"),
            field("blur", "Blur the pictures of LoRAs that have in their path or words", "private, nsfw"),
            make("p", {class: "lora-runtime-hint"}, t("With commas between; * stands for anything. Tags find hidden files all the same. This browser keeps it.")),
        );
    }

    /** Return the address of something of the host's. */
    address(path) {
        return (this.getAttribute("base") || BASE).replace(/\/*$/, "/") + path;
    }

    get model() {
        return this.getAttribute("model") || "";
    }

    // --- which cards there are ---

    /** Return what is asked of the host, for cards from a place on. */
    question(offset, more = {}) {
        const asked = {q: this.search.value.trim(), folder: this.folder.value, families: [...this.families].join("|"), model: this.model};
        for (const key of KEPT) asked[key] = kept(key);
        const set = Object.entries({...asked, ...more}).filter(([, value]) => value);
        for (const [key, value] of Object.entries(this.on)) if (value) set.push([key, "true"]);
        return this.address(`cards?${new URLSearchParams([...set, ["offset", offset], ["limit", PART]])}`);
    }

    /** Fetch the cards anew; `stay`: Tab leads to the same place as before. `at` is the name of a card that it leads to. */
    async reload({stay = false, at = ""} = {}) {
        const number = ++this.asked;
        let answer;
        try {
            answer = await answerOf(this.question(0, {at}));
        } catch (error) {
            if (number === this.asked) this.fail(error);
            return;
        }
        if (number !== this.asked) return;
        this.parts = new Map([[0, answer.cards]]);
        this.total = answer.total;
        this.current = Math.max(0, at && answer.at >= 0 ? answer.at : stay ? Math.min(this.current, this.total - 1) : 0);
        this.showFamilies(answer.families);
        this.showFolders(answer.folders);
        this.showRefused(answer);
        this.count(answer.unsure);
        this.render();
    }

    /** Fetch a part of the cards; what was fetched of files that others have changed meanwhile is fetched anew. */
    async fetchPart(part) {
        const number = this.asked;
        this.parts.set(part, null);
        try {
            const answer = await answerOf(this.question(part * PART));
            if (number !== this.asked) return;
            if (answer.total !== this.total) {
                this.reload({stay: true});
                return;
            }
            this.parts.set(part, answer.cards);
        } catch (error) {
            if (number !== this.asked) return;
            this.parts.set(part, "failed");
            this.fail(error);
        }
        this.render();
    }

    /** Return the card at a place; null where it is to be fetched, which begins then. */
    cardAt(place) {
        const part = Math.floor(place / PART);
        const cards = this.parts.get(part);
        if (cards === undefined) this.fetchPart(part);
        return Array.isArray(cards) ? cards[place % PART] || null : null;
    }

    /** Say that cards could not be fetched, and wait for a click instead of asking again and again. */
    fail(error) {
        console.error("LoRA Runtime:", error);
        this.said.replaceChildren(
            `${t("The cards could not be fetched")} (${error.message}). `, button(t("Try again"), () => {
                this.said.replaceChildren();
                this.reload({stay: true});
            }));
    }

    count(unsure) {
        const count = told(t(this.total === 1 ? "{count} LoRA" : "{count} LoRAs"), {count: this.total.toLocaleString("en")});
        this.counted.replaceChildren(this.total ? count : this.narrowed ? t("No LoRA is what you look for.") : t("There is no LoRA yet: put files into the folders that are searched."));
        if (!unsure) return;
        this.counted.append(
            `; ${told(t("of {count} it is not known yet whether they fit"), {count: unsure.toLocaleString("en")})} `,
            button(t("Look further"), () => this.reload({stay: true})));
    }

    /** Whether anything narrows down what is shown. */
    get narrowed() {
        return Boolean(this.search.value.trim() || this.folder.value || this.families.size || this.on.favourites || this.on.fits || kept("hide"));
    }

    /** Show a button for each family; where there is but one there is nothing to choose. */
    showFamilies(counts) {
        const names = [...new Set([...Object.keys(counts), ...this.families])]; // or nobody could switch it off
        const shown = JSON.stringify([names, counts]);
        if (shown === this.chips.dataset.shown) return;
        this.chips.dataset.shown = shown;
        const had = this.chips.contains(document.activeElement) ? document.activeElement.dataset.family : null;
        this.chips.replaceChildren(...(names.length < 2 && !this.families.size ? [] : names).map((name) => {
            const label = `${name === "unknown" ? t("Unknown") : name} ${(counts[name] || 0).toLocaleString("en")}`;
            const chip = button(label, () => {
                if (!this.families.delete(name)) this.families.add(name);
                chip.setAttribute("aria-pressed", String(this.families.has(name)));
                this.reload();
            }, {"aria-pressed": String(this.families.has(name)), "data-family": name});
            return chip;
        }));
        if (had !== null) [...this.chips.children].find((chip) => chip.dataset.family === had)?.focus();
    }

    showFolders(counts) {
        const chosen = this.folder.value;
        const names = Object.keys(counts);
        if (chosen && !names.includes(chosen)) names.push(chosen);
        this.folder.replaceChildren(
            make("option", {value: ""}, t("All folders")),
            ...names.map((name) => make("option", {value: name}, `${name} (${(counts[name] || 0).toLocaleString("en")})`)));
        this.folder.value = chosen;
        this.folder.hidden = !names.length;
    }

    showRefused({refused, reasons}) {
        this.refused.hidden = !refused;
        const more = refused - reasons.length;
        this.refused.replaceChildren(
            make("summary", {}, told(t(refused === 1 ? "{count} file cannot be used" : "{count} files cannot be used"), {count: refused.toLocaleString("en")})),
            make("ul", {}, ...reasons.map(([place, why]) => make("li", {}, make("b", {}, place), `: ${why}`)),
                more > 0 ? make("li", {}, told(t("and {count} more"), {count: more.toLocaleString("en")})) : null));
    }

    // --- what is in the page ---

    /** Put the cards in sight into the page, and take others out. */
    render() {
        cancelAnimationFrame(this.drawing);
        this.drawing = 0;
        const box = this.list.getBoundingClientRect();
        if (!this.isConnected || !box.width) return;
        this.columns = Math.max(1, Math.floor((box.width + GAP) / (LEAST_WIDTH + GAP)));
        this.width = (box.width - GAP * (this.columns - 1)) / this.columns;
        this.height = Math.ceil(this.width + this.probe.offsetHeight) + GAP;
        this.list.style.height = `${Math.max(0, Math.ceil(this.total / this.columns) * this.height - GAP)}px`;
        const row = (pixels) => Math.floor((pixels - box.top) / this.height);
        const first = Math.max(0, row(-AROUND)) * this.columns;
        const end = Math.min(this.total, (row(innerHeight + AROUND) + 1) * this.columns);
        for (const [place, cell] of this.cells) {
            if (place >= this.total || ((place < first || place >= end) && !cell.contains(document.activeElement))) this.leave(place);
        }
        const focused = this.list.contains(document.activeElement);
        if (!focused && end > first && (this.current < first || this.current >= end)) this.current = first;
        for (let place = first; place < end; place++) this.place(place);
        for (const cell of this.cells.values()) this.settle(cell);
        this.leadTab();
    }

    /** Put an element where its place is. */
    settle(cell) {
        cell.style.left = `${(cell.place % this.columns) * (this.width + GAP)}px`;
        cell.style.top = `${Math.floor(cell.place / this.columns) * this.height}px`;
        cell.style.width = `${this.width}px`;
        cell.style.height = `${this.height - GAP}px`;
        cell.setAttribute("aria-setsize", String(this.total));
    }

    /** Put the card of a place into the page, where it is not there yet as it is now. */
    place(place) {
        const card = this.cardAt(place);
        const before = this.cells.get(place);
        if (before && (before.card === card || (card && before.card && JSON.stringify(card) === JSON.stringify(before.card)))) {
            before.card = card;
            return;
        }
        const cell = card ? this.cellOf(card) : make("div", {class: "lr-cell lr-waiting", role: "listitem"});
        cell.card = card;
        cell.place = place;
        cell.setAttribute("aria-posinset", String(place + 1));
        if (before) {
            const had = before.contains(document.activeElement);
            before.replaceWith(cell);
            if (had) cell.querySelector(".lr-card")?.focus({preventScroll: true});
        } else {
            const after = Math.min(...[...this.cells.keys()].filter((other) => other > place));
            this.list.insertBefore(cell, this.cells.get(after) || null);
        }
        this.cells.set(place, cell);
    }

    leave(place) {
        this.cells.get(place).remove();
        this.cells.delete(place);
    }

    /** Return the element of a card. */
    cellOf(card) {
        const name = card.title.split("/").pop();
        const chosen = make(
            "button", {
                type: "button", class: "lr-card", "data-tag": `<lora:${card.tag}:1>`, "aria-pressed": String(this.names.has(card.tag)),
                title: told(t("Put {tag} into the prompt, or take it out"), {tag: `<lora:${card.tag}:1>`}),
            },
            make("span", {class: "lr-look"}, this.look(card) || make("span", {class: "lr-letter", "aria-hidden": "true"}, name.charAt(0))),
            make("span", {class: "lr-name"}, card.title),
            make("span", {class: "lr-family"}, card.family),
            make("span", {class: "lr-words"}, card.words.join(", ")),
        );
        const cell = make(
            "div", {class: "lr-cell", role: "listitem", "data-name": card.name},
            chosen,
            make("button", {
                type: "button", class: "lr-info", title: t("Large picture, words, file"), "aria-label": `${t("Large picture, words, file")}: ${card.title}`,
            }),
            make("button", {
                type: "button", class: "lr-star", "aria-pressed": String(card.favourite), title: t("Favourite"), "aria-label": `${t("Favourite")}: ${card.title}`,
            }),
            card.page ? make("a", {
                class: "lr-page", href: card.page, target: "_blank", rel: "noopener noreferrer", "aria-label": `${t("Model page")}: ${card.title}`,
            }, t("Model page")) : null,
        );
        cell.classList.toggle("lr-other", card.other);
        cell.classList.toggle("lr-blurred", card.blurred);
        return cell;
    }

    /** Return the picture of a card, or its film, which begins when somebody looks at it; null for none. */
    look(card) {
        const picture = card.picture && this.address(card.picture);
        if (!card.film) return picture ? make("img", {src: picture, alt: "", loading: "lazy", decoding: "async"}) : null;
        // Without a picture the film's own first moment stands there.
        const film = make("video", {muted: true, loop: true, playsInline: true, preload: picture ? "none" : "metadata", "aria-hidden": "true", tabindex: "-1"});
        if (picture) film.poster = picture;
        film.src = this.address(card.film);
        return film;
    }

    /** Mark the cards whose tag is in the prompt. */
    mark() {
        this.names = new Set(namesInTags(this.prompt.text).map((tag) => tag.name));
        for (const {card, firstChild} of this.cells.values()) {
            if (card) firstChild.setAttribute("aria-pressed", String(this.names.has(card.tag)));
        }
    }

    // --- choosing, by pointer and by keyboard ---

    clicked(event) {
        const cell = event.target.closest(".lr-cell");
        const starred = event.target.closest(".lr-star, .lora-runtime-star");
        if (starred) this.star(starred.closest("[data-name]").dataset.name, starred);
        else if (cell && event.target.closest(".lr-info")) this.window.details(cell.dataset.name, event.target.closest(".lr-info"));
        else if (cell && event.target.closest(".lr-card")) this.choose(cell.card);
    }

    /** Put the tag of a card into the prompt, where its cursor is, or take it out. */
    choose(card) {
        const {area, text} = this.prompt;
        if (!area) return;
        const {span, text: written} = changeOfTag(text, card.tag, this.touched ? area.selectionEnd : text.length);
        this.prompt.replace(span, written);
        if (written) area.setSelectionRange(span[0] + written.length, span[0] + written.length); // the next one comes after it
        this.mark();
    }

    async star(name, element) {
        const on = element.getAttribute("aria-pressed") !== "true";
        const show = (value) => {
            element.setAttribute("aria-pressed", String(value));
            for (const cards of this.parts.values()) {
                for (const card of Array.isArray(cards) ? cards : []) if (card.name === name) card.favourite = value;
            }
            for (const cell of this.cells.values()) {
                if (cell.card?.name === name) cell.querySelector(".lr-star").setAttribute("aria-pressed", String(value));
            }
        };
        show(on);
        try {
            await answerOf(this.address("star"), {name, on});
        } catch (error) {
            show(!on);
            this.tell(error.message);
        }
    }

    keyed(event) {
        const cell = event.target.closest(".lr-cell");
        if (!cell || event.altKey || event.ctrlKey || event.metaKey) return;
        const place = this.move(event.key, cell.place);
        if (place !== null) {
            if (place !== cell.place) this.goTo(place);
        } else if (event.key === "f" || event.key === "F") {
            this.star(cell.dataset.name, cell.querySelector(".lr-star"));
        } else if (event.key === "i" || event.key === "I") {
            this.window.details(cell.dataset.name, cell.querySelector(".lr-card"));
        } else {
            return;
        }
        event.preventDefault();
    }

    /** Return the place that a key leads to from another one, null where the key leads nowhere. */
    move(key, place) {
        const last = this.total - 1;
        const page = this.columns * Math.max(1, Math.floor(innerHeight / this.height) - 1);
        const isLastRow = Math.floor(place / this.columns) === Math.floor(last / this.columns);
        switch (key) {
        case "ArrowRight": return Math.min(last, place + 1);
        case "ArrowLeft": return Math.max(0, place - 1);
        case "ArrowDown": return isLastRow ? place : Math.min(last, place + this.columns);
        case "ArrowUp": return place < this.columns ? place : place - this.columns;
        case "PageDown": return Math.min(last, place + page);
        case "PageUp": return Math.max(0, place - page);
        case "Home": return 0;
        case "End": return last;
        default: return null;
        }
    }

    /** Give the focus to the card at a place, once that is there. */
    async goTo(place) {
        const number = ++this.going;
        this.place(place);
        this.settle(this.cells.get(place));
        this.cells.get(place).scrollIntoView({block: "nearest"});
        for (;;) {
            this.render();
            const card = this.cells.get(place)?.querySelector(".lr-card");
            if (card) {
                card.focus({preventScroll: true});
                return;
            }
            await new Promise((done) => setTimeout(done, 30)); // it is being fetched
            if (number !== this.going || place >= this.total || this.parts.get(Math.floor(place / PART)) === "failed") return;
        }
    }

    /** Let Tab lead to one card, and on to its buttons. */
    enter(place) {
        if (place === this.current) return;
        this.current = place;
        this.leadTab();
    }

    leadTab() {
        for (const [place, cell] of this.cells) {
            for (const part of cell.querySelectorAll("button, a")) part.tabIndex = place === this.current ? 0 : -1;
        }
    }

    // --- what the window asks ---

    home() {
        return this;
    }

    area() {
        return this.prompt.area;
    }

    async details(name) {
        const found = await answerOf(this.address(`details?${new URLSearchParams({name, model: this.model})}`));
        for (const key of ["preview", "film"]) if (found[key]) found[key] = this.address(found[key]);
        return found;
    }

    bin() {
        return answerOf(this.address("bin"));
    }

    /** Change a file, and show what is there then. */
    async change(values) {
        const answer = await answerOf(this.address("file"), values);
        await this.reload({stay: true, at: answer.name});
        return answer;
    }

    /** Say what was done, offer the way back, and let the prompt mean the same file as before. */
    changed(answer) {
        const undo = answer.undo ? button(t("Undo"), () => this.change(answer.undo).then((done) => this.changed(done), (error) => this.tell(error.message))) : "";
        this.said.replaceChildren(answer.said, " ", undo);
        if (undo) undo.focus();
        const [before, now] = answer.tags;
        if (before && now && before !== now) {
            const {text} = this.prompt;
            const renamed = withRenamed(text, before, now);
            if (renamed !== text) this.prompt.replace([0, text.length], renamed);
        }
        filesChanged();
    }

    tell(text) {
        this.said.replaceChildren(text);
    }

    heir() {
        return this.cells.get(this.current)?.querySelector(".lr-card");
    }
}

/** Return what the browser keeps of a wish, "" for nothing and where it keeps nothing. */
function kept(key) {
    try {
        return localStorage.getItem(`lora-runtime-${key}`) || "";
    } catch (error) {
        return "";
    }
}

function keep(key, value) {
    try {
        localStorage.setItem(`lora-runtime-${key}`, value);
    } catch (error) {
        console.warn("LoRA Runtime:", error.message); // a browser that keeps nothing
    }
}

if (!customElements.get("lora-gallery")) customElements.define("lora-gallery", LoraGallery);
