/*
 * What one does with the cards of the Lora tab beside choosing them: which are shown (favourites, families, what fits, used last), the
 * keyboard, films, and a window with a large picture, the words, and the file's name and place. Texts that the page shows are
 * looked up in the WebUI's `localization`. What a server or a file says becomes text, never markup.
 */
(function() {
    "use strict";

    // --- text to text --------------------------------------------------------------------------------------------

    /** Return where a word stands in a prompt, alone between commas, tags and ends of lines; null where it does not. */
    function spanOfWord(prompt, word) {
        let end = 0;
        for (const part of prompt.split(/(<[^<>]*>|[,\n])/)) {
            const start = end + part.length - part.replace(/^\s+/, "").length;
            end += part.length;
            if (part.trim().toLowerCase() === word.toLowerCase()) return [start, start + part.trim().length];
        }
        return null;
    }

    /** Return the span of a prompt that is replaced, and by what, where a word comes in or goes out; the rest stays. */
    function changeOfWord(prompt, word) {
        const span = spanOfWord(prompt, word);
        if (!span) {
            const end = prompt.replace(/[\s,]+$/, "").length;
            return {span: [end, end], text: end ? `, ${word}` : word};
        }
        // A comma goes along, that before it or at the start that behind; in the middle of a line one stays.
        const before = /,[ \t]*$/.exec(prompt.slice(0, span[0]));
        const after = /^[ \t]*(?:,[ \t]*)?/.exec(prompt.slice(span[1]))[0];
        if (before) return {span: [before.index, span[1]], text: ""};
        return {span: [span[0], span[1] + (after.includes(",") ? after.length : 0)], text: ""};
    }

    if (typeof module === "object" && module.exports) {
        module.exports = {changeOfWord, spanOfWord};
        return;
    }

    // --- the page ------------------------------------------------------------------------------------------------

    const TABS = ["txt2img", "img2img"];
    const LOOK_MS = 300;
    let runtime = null; // what javascript/lora_runtime.js gives, once that is there

    /** Return a text in the language that the WebUI is set to. */
    function t(text) {
        const table = window.localization;
        const found = table && typeof table === "object" ? table[text] : "";
        return typeof found === "string" && found ? found : text;
    }

    /** Return an element with properties ("on…" as listeners, those with "-" and role as attributes) and children. */
    function make(name, properties, ...children) {
        const element = document.createElement(name);
        for (const [key, value] of Object.entries(properties || {})) {
            if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
            else if (key === "role" || key === "for" || key.includes("-")) element.setAttribute(key, value);
            else element[key] = value;
        }
        element.append(...children.filter((child) => child !== null));
        return element;
    }

    function button(text, onclick, properties) {
        return make("button", Object.assign({type: "button", className: "lora-runtime-button", onclick}, properties), text);
    }

    async function post(path, values) {
        const answer = await fetch(`./lora-runtime/${path}`, {
            method: "POST",
            headers: {"Content-Type": "application/json"},
            body: JSON.stringify(values),
        });
        const found = await answer.json().catch(() => ({}));
        if (!answer.ok) throw new Error(typeof found.detail === "string" ? found.detail : `${answer.status} ${answer.statusText}`);
        if (found.error) throw new Error(found.error);
        return found;
    }

    function say(error) {
        console.warn("LoRA Runtime:", error.message);
        return error.message;
    }

    // --- which cards are shown -----------------------------------------------------------------------------------

    /** The buttons above the cards of one tab, and what they ask for. They are made anew where the WebUI replaces its page. */
    class Filters {
        constructor(tab) {
            this.tab = tab;
            this.on = {favourites: false, fits: false, recent: false};
            this.families = new Set();
            this.counts = {};
            this.bar = null;
            this.shown = ""; // the families as they are drawn
            runtime.pages[tab].onAnswer = (answer) => this.answered(answer);
        }

        settle() {
            const parts = runtime.partsOf(this.tab);
            if (!parts || (this.bar && parts.holder.contains(this.bar))) return;
            const toggle = (key, text, hint) => button(t(text), (event) => this.switch(key, event.currentTarget), {
                title: t(hint), "aria-pressed": String(this.on[key]),
            });
            this.list = make("div", {className: "lora-runtime-families", role: "group", "aria-label": t("Model families")});
            this.status = make("div", {className: "lora-runtime-status", role: "status"});
            this.bar = make(
                "div", {className: "lora-runtime-filters", role: "group", "aria-label": t("Which LoRAs are shown")},
                toggle("favourites", "★ Favourites", "Only those with a star"),
                toggle("fits", "Fits this checkpoint", "Only those that were made for the checkpoint that is loaded"),
                toggle("recent", "Last used first", "Those that were used last come first"),
                this.list,
                button(t("Bin"), (event) => openBin(this.tab, event.currentTarget), {title: t("What was thrown away, and putting it back")}),
                this.status
            );
            parts.holder.prepend(this.bar);
            runtime.pages[this.tab].count(parts);
            this.shown = "";
            this.draw();
        }

        switch(key, element) {
            this.on[key] = !this.on[key];
            element.setAttribute("aria-pressed", String(this.on[key]));
            this.ask();
        }

        ask() {
            const asks = {};
            if (this.on.favourites) asks.favourites = true;
            if (this.on.fits) asks.fits = true;
            if (this.on.recent) Object.assign(asks, {sort: "date_used", dir: "Descending"});
            if (this.families.size) asks.families = [...this.families].join("|");
            runtime.pages[this.tab].asks = asks;
            runtime.pages[this.tab].reload();
        }

        answered(answer) {
            if (answer.families) this.counts = answer.families;
            this.settle();
            this.draw();
            enter(this.tab);
        }

        /** Draw a button for each family; where there is but one there is nothing to choose. */
        draw() {
            const names = Object.keys(this.counts);
            for (const name of this.families) if (!names.includes(name)) names.push(name); // or nobody could switch it off
            const drawn = JSON.stringify([names, this.counts]);
            if (!this.bar || drawn === this.shown) return;
            this.shown = drawn;
            const had = this.list.contains(document.activeElement) ? document.activeElement.dataset.family : null;
            this.list.textContent = "";
            if (names.length < 2 && !this.families.size) return;
            for (const name of names) {
                const count = (this.counts[name] || 0).toLocaleString("en");
                const chip = button(`${name === "unknown" ? t("Unknown") : name} ${count}`, () => {
                    if (!this.families.delete(name)) this.families.add(name);
                    chip.setAttribute("aria-pressed", String(this.families.has(name)));
                    this.ask();
                }, {"aria-pressed": String(this.families.has(name))});
                chip.dataset.family = name;
                this.list.append(chip);
                if (name === had) chip.focus();
            }
        }

        /** Say what was done, with a button that undoes it. */
        tell(text, undo) {
            if (!this.status) return;
            this.status.textContent = text;
            if (undo) this.status.append(" ", button(t("Undo"), () => change(this.tab, undo).catch((error) => this.tell(say(error)))));
        }
    }

    const filters = {};

    // --- the keyboard --------------------------------------------------------------------------------------------

    const CARD = ".card[data-tag]";
    const current = {}; // of each tab the card that Tab leads to

    const chooser = (card) => card.querySelector(".lora-runtime-choose");

    /** Let Tab lead to one card of a tab, and on to its buttons. */
    function enter(tab, card) {
        const parts = runtime.partsOf(tab);
        const before = current[tab];
        if (!card && before && parts && parts.cards.contains(before)) return;
        const now = card || (parts && parts.cards.querySelector(CARD));
        if (before) before.querySelectorAll("[tabindex]").forEach((part) => part.setAttribute("tabindex", "-1"));
        if (now) now.querySelectorAll("[tabindex]").forEach((part) => part.setAttribute("tabindex", "0"));
        current[tab] = now;
    }

    /** Return the card that comes after `card`, or before it. */
    function beside(card, step) {
        let found = card;
        do found = step > 0 ? found.nextElementSibling : found.previousElementSibling;
        while (found && !found.matches(`${CARD}:not(.hidden)`));
        return found;
    }

    /** Return the card below a card, or above it: of the next row the one that is nearest. */
    function across(card, step) {
        const left = card.offsetLeft;
        const top = card.offsetTop;
        let nearest = null;
        let row = null;
        for (let found = beside(card, step); found; found = beside(found, step)) {
            if (found.offsetTop === top) continue;
            if (row === null) row = found.offsetTop;
            if (found.offsetTop !== row) break;
            if (!nearest || Math.abs(found.offsetLeft - left) < Math.abs(nearest.offsetLeft - left)) nearest = found;
        }
        return nearest;
    }

    const MOVES = {
        ArrowRight: (card) => beside(card, 1),
        ArrowLeft: (card) => beside(card, -1),
        ArrowDown: (card) => across(card, 1),
        ArrowUp: (card) => across(card, -1),
        Home: (card) => card.parentElement.querySelector(CARD),
        End: (card) => [...card.parentElement.querySelectorAll(CARD)].pop(),
    };

    function keyed(event) {
        const card = event.target.closest && event.target.closest(CARD);
        const tab = card && runtime.tabOf(card);
        if (!tab || event.altKey || event.ctrlKey || event.metaKey) return;
        const move = MOVES[event.key];
        if (move) {
            const next = move(card);
            if (next) chooser(next).focus();
        } else if ((event.key === "Enter" || event.key === " ") && event.target.matches("div.card-button")) {
            event.target.click();
        } else if (event.key === "f" || event.key === "F") {
            star(card.querySelector(".lora-runtime-star"));
        } else if (event.key === "i" || event.key === "I") {
            openDetails(tab, card.dataset.name, chooser(card));
        } else {
            return;
        }
        event.preventDefault();
    }

    // --- stars and films -----------------------------------------------------------------------------------------

    async function star(element) {
        const on = element.getAttribute("aria-pressed") !== "true";
        const name = element.closest("[data-name]").dataset.name;
        const show = (value) => {
            for (const card of document.querySelectorAll(CARD)) {
                if (card.dataset.name === name) card.querySelector(".lora-runtime-star").setAttribute("aria-pressed", String(value));
            }
            if (!element.closest(CARD)) element.setAttribute("aria-pressed", String(value));
        };
        show(on);
        try {
            await post("star", {name, on});
        } catch (error) {
            show(!on);
            TABS.forEach((tab) => filters[tab].tell(say(error)));
        }
    }

    let playing = null;

    /** Let the film of a card begin while somebody looks at it, and end with that. */
    function look(event) {
        const card = event.target.closest && event.target.closest(CARD);
        const film = card && card.querySelector("video.preview");
        if (film === playing) return;
        if (playing) playing.pause();
        playing = film || null;
        if (playing && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
            playing.play().catch(() => {}); // taken away by now
        }
    }

    // --- the window ----------------------------------------------------------------------------------------------

    let shut = () => {};

    /** Keep Escape for the window that is open, wherever the focus is: the program interrupts a generation at it. */
    function keepEscape(event) {
        if (event.key === "Escape") event.stopPropagation();
    }

    /** What stands in the place of a part of a card that the page has made anew meanwhile. */
    function newOf(part) {
        const old = part.closest(CARD);
        if (!old) return null;
        const cards = [...gradioApp().querySelectorAll(CARD)];
        const card = cards.find((each) => each.dataset.name === old.dataset.name && each.offsetParent);
        return card ? chooser(card) : null;
    }

    /** Open a window with a heading; it closes by its button, by Escape and by a click beside it. */
    function openWindow(heading, opener, ...children) {
        shut();
        const title = make("h3", {id: "lora_runtime_window_title"}, heading);
        const close = button(t("Close"), () => shut());
        const inner = make("div", {className: "lora-runtime-window-inner"}, make("header", {}, title, close), ...children);
        const box = make("dialog", {className: "lora-runtime-window", "aria-labelledby": title.id}, inner);
        // The page's own children, for the theme's variables stand there.
        gradioApp().append(box);
        shut = () => {
            shut = () => {};
            document.removeEventListener("keydown", keepEscape, true);
            box.remove();
            const there = opener && (opener.isConnected ? opener : newOf(opener));
            if (there) there.focus();
        };
        box.addEventListener("click", (event) => event.target === box && shut());
        box.addEventListener("cancel", (event) => {
            event.preventDefault();
            shut();
        });
        document.addEventListener("keydown", keepEscape, true);
        if (box.showModal) box.showModal();
        else box.setAttribute("open", "");
        close.focus();
        return inner;
    }

    async function openDetails(tab, name, opener) {
        let found;
        try {
            found = await runtime.ask("details", {name});
            if (found.error) throw new Error(found.error);
        } catch (error) {
            filters[tab].tell(say(error));
            return;
        }
        const about = make("dl", {});
        const tell = (label, value) => value && about.append(make("dt", {}, t(label)), make("dd", {}, value));
        tell("Place", found.place);
        tell("Made for", found.family);
        tell("Fits", found.coverage);
        tell("Used last", found.used ? new Date(found.used * 1000).toLocaleString() : t("never"));
        if (found.page) tell("Model page", make("a", {href: found.page, target: "_blank", rel: "noopener noreferrer"}, found.page));
        const starred = make("button", {
            type: "button", className: "lora-runtime-star lora-runtime-button", "aria-pressed": String(found.favourite),
        }, t("Favourite"));
        const parts = [
            shownLarge(found),
            make("div", {"data-name": found.name}, starred),
            about,
            found.words.length ? wordsOf(tab, found.words) : null,
            found.description ? make("p", {className: "lora-runtime-description"}, found.description) : null,
            found.allowed ? fileOf(tab, found) : null,
        ];
        openWindow(found.name, opener, ...parts);
    }

    function shownLarge(found) {
        if (found.film) return make("video", {className: "lora-runtime-large", src: found.film, poster: found.preview, controls: true, loop: true, muted: true});
        return found.preview ? make("img", {className: "lora-runtime-large", src: found.preview, alt: ""}) : null;
    }

    /** Return a button for each word, which puts it into the prompt or takes it out. */
    function wordsOf(tab, words) {
        const area = runtime.promptArea(tab, false);
        const list = make("div", {className: "lora-runtime-words", role: "group", "aria-label": t("Words it was trained with")});
        for (const word of words) {
            const chip = button(word, () => {
                const {span, text} = changeOfWord(area.value, word);
                write(area, span, text, chip);
                chip.setAttribute("aria-pressed", String(Boolean(spanOfWord(area.value, word))));
            }, {"aria-pressed": String(Boolean(spanOfWord(area.value, word))), title: t("Put it into the prompt, or take it out")});
            list.append(chip);
        }
        return make("section", {}, make("h4", {}, t("Words it was trained with")), list);
    }

    /** Put a text into the place of a span of a prompt as if it had been typed, from a window whose `chip` keeps the focus. */
    function write(area, [start, end], text, chip) {
        const wanted = area.value.slice(0, start) + text + area.value.slice(end);
        const box = chip.closest("dialog");
        const {scrollTop} = area;
        const scrolled = [box, box.firstElementChild].map((each) => [each, each.scrollTop]);
        const modal = Boolean(box.showModal) && box.open;
        if (modal) box.close(); // below a window that is open nothing takes the focus
        area.focus({preventScroll: true});
        area.setSelectionRange(start, end);
        // The only way that leaves the area's own undo whole; all browsers have it, though it is called obsolete.
        if (document.activeElement === area) document.execCommand(text ? "insertText" : "delete", false, text);
        if (area.value !== wanted) {
            area.value = wanted;
            updateInput(area);
        }
        area.scrollTop = scrollTop;
        if (modal) box.showModal();
        chip.focus({preventScroll: true});
        for (const [each, top] of scrolled) each.scrollTop = top;
    }

    /** Return the part of the window in which the file gets another name or place. */
    function fileOf(tab, found) {
        const said = make("p", {className: "lora-runtime-said-error", role: "alert"});
        const ask = (values) => attempt(tab, Object.assign({name: found.name}, values), said);
        const name = make("input", {type: "text", value: found.stem, "aria-label": t("Name of the file"), spellcheck: false});
        const folder = make("select", {"aria-label": t("Folder")}, ...found.folders.map((each) => make(
            "option", {value: each, selected: each === found.folder}, each || t("(the outermost)"))));
        const form = (label, act, field) => make("form", {onsubmit: (event) => {
            event.preventDefault();
            ask(act());
        }}, field, make("button", {type: "submit", className: "lora-runtime-button"}, label));
        return make(
            "section", {},
            make("h4", {}, t("File")),
            form(t("Rename"), () => ({action: "rename", to: name.value.trim()}), name),
            form(t("Move"), () => ({action: "move", to: folder.value}), folder),
            button(t("Put into the bin"), () => ask({action: "bin"})),
            make("p", {className: "lora-runtime-hint"}, t("What lies beside it under its name goes along: pictures, notes, side-cars.")),
            said
        );
    }

    /** Change a file from a window: it closes where that could be done, and otherwise says why in `said`. */
    async function attempt(tab, values, said) {
        try {
            await change(tab, values);
        } catch (error) {
            said.textContent = say(error);
            return;
        }
        shut();
        const undo = filters[tab].status && filters[tab].status.querySelector("button");
        if (undo) undo.focus();
    }

    /** Ask for another name or place of a file, show it, and offer the way back. */
    async function change(tab, values) {
        const answer = await post("file", values);
        if (values.action === "bin") remove(values.name);
        else if (values.action === "restore") reload();
        else await runtime.refreshCard(tab, answer.name, values.name);
        TABS.forEach((each) => filters[each].tell(answer.said, each === tab ? answer.undo : null));
        const parts = runtime.partsOf(tab);
        const card = parts && [...parts.cards.querySelectorAll(CARD)].find((each) => each.dataset.name === answer.name);
        if (card) enter(tab, card);
    }

    /** Take the cards of a file that is gone out of the pages, which stay scrolled as they are. */
    function remove(name) {
        for (const tab of TABS) {
            const parts = runtime.partsOf(tab);
            const card = parts && [...parts.cards.querySelectorAll(CARD)].find((each) => each.dataset.name === name);
            if (!card) continue;
            card.remove();
            const page = runtime.pages[tab];
            page.first = "";
            page.shown -= 1;
            page.total -= 1;
            page.count(parts);
            page.watch();
            enter(tab);
        }
    }

    function reload() {
        for (const tab of TABS) {
            runtime.pages[tab].first = "";
            runtime.pages[tab].reload();
        }
    }

    async function openBin(tab, opener) {
        let found;
        try {
            found = await runtime.ask("bin", {});
        } catch (error) {
            filters[tab].tell(say(error));
            return;
        }
        const said = make("p", {className: "lora-runtime-said-error", role: "alert"});
        const rows = found.bin.map((thing) => {
            const when = new Date(thing.when * 1000).toLocaleString();
            const back = button(t("Put back"), () => attempt(tab, {action: "restore", token: thing.token}, said), {disabled: !found.allowed, "aria-label": `${t("Put back")}: ${thing.place}`});
            return make("li", {}, make("span", {}, thing.place), make("small", {}, when), back);
        });
        const hint = t("Nothing is deleted. What you want no more can be deleted in the folder .lora-bin, beside the LoRAs.");
        openWindow(
            t("Bin"), opener,
            rows.length ? make("ul", {className: "lora-runtime-bin"}, ...rows) : make("p", {}, t("The bin is empty.")),
            make("p", {className: "lora-runtime-hint"}, hint),
            said
        );
    }

    // --- beginning -----------------------------------------------------------------------------------------------

    document.addEventListener("keydown", (event) => runtime && keyed(event));
    document.addEventListener("focusin", (event) => {
        const card = runtime && event.target.closest && event.target.closest(CARD);
        const tab = card && runtime.tabOf(card);
        if (!tab) return;
        if (card !== current[tab]) enter(tab, card);
        look(event);
    });
    document.addEventListener("pointerover", (event) => runtime && look(event));
    document.addEventListener("click", (event) => {
        const place = runtime && event.target.closest && event.target.closest(".lora-runtime-star, .lora-runtime-details-button");
        if (!place) return;
        if (place.matches(".lora-runtime-star")) {
            star(place);
            return;
        }
        const tab = runtime.tabOf(place);
        if (tab) openDetails(tab, place.closest("[data-name]").dataset.name, place);
    });

    setInterval(() => {
        if (document.hidden || typeof gradioApp !== "function" || !window.loraRuntime) return;
        if (!runtime) {
            runtime = window.loraRuntime;
            for (const tab of TABS) filters[tab] = new Filters(tab);
        }
        for (const tab of TABS) {
            filters[tab].settle();
            enter(tab);
        }
    }, LOOK_MS);
})();
