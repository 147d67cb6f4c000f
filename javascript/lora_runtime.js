/*
 * The Lora tab in the browser: what a click on a card does to the prompts, searching and sorting on the server, and more
 * cards while the user scrolls. Only for our own page; the WebUI's other pages keep its functions.
 *
 * Everything a card needs stands in its data attributes (extension/panel/cards.py). The first half of this file are functions
 * from text to text, which `node` can run: tests/extension/test_page_script.py.
 */
(function() {
    "use strict";

    // --- text to text ------------------------------------------------------------------------------------------

    const TAG = /<(?:lora|lyco|loractl):([^>]+)>/i;

    /** Return the spellings of a name under which a tag may have it. */
    function spellings(name) {
        const whole = name.normalize("NFC");
        const tidy = whole.trim().replace(/\\/g, "/");
        return [tidy, tidy.replace(/\.safetensors$/i, ""), whole, whole.trim()];
    }

    /** Return whether the name in a tag means a file that has these names. */
    function means(written, names) {
        return fits(spellings(written), names.map((name) => name.normalize("NFC")));
    }

    /** Return whether one of a file's names, composed, is one of the spellings of a name. */
    function fits(wanted, names) {
        return names.some((known) => {
            if (wanted.includes(known)) return true;
            if (!known.startsWith("#")) return false;
            // A hash may be written with more digits, or fewer, than the card has, and without its "#".
            const digits = wanted[0].toLowerCase().replace(/^#/, "");
            const own = known.slice(1);
            return /^[0-9a-f]{8,64}$/.test(digits) && (own.startsWith(digits) || digits.startsWith(own));
        });
    }

    /** Return {name, start, end} of each tag in the text. */
    function allTags(text) {
        const found = [];
        const tag = new RegExp(TAG, "gi"); // its own: it remembers how far it has come
        for (let match = tag.exec(text); match; match = tag.exec(text)) {
            found.push({name: match[1].split(":")[0], start: match.index, end: tag.lastIndex});
        }
        return found;
    }

    /** Return those of its tags that mean this file. */
    function findTags(text, names) {
        return allTags(text).filter((tag) => means(tag.name, names));
    }

    /** Return the text without [start, end), and without one separator that stood before it, or at the very start behind. */
    function cut(text, start, end, separator) {
        const before = text.slice(0, start);
        const after = text.slice(end);
        if (separator && before.endsWith(separator)) return before.slice(0, before.length - separator.length) + after;
        if (separator && !before && after.startsWith(separator)) return after.slice(separator.length);
        return before + after;
    }

    /** Return the text with an addition at its end; an empty text gets no separator. */
    function append(text, addition, separator) {
        return text ? text + separator + addition : addition;
    }

    /** Return the prompt without the file's tags and the activation text behind each. */
    function removeTags(text, card, separator) {
        for (const {start, end} of findTags(text, card.names).reverse()) {
            const words = card.activation ? " " + card.activation : "";
            const last = words && text.startsWith(words, end) ? end + words.length : end;
            text = cut(text, start, last, separator);
        }
        return text;
    }

    /** Return the negative prompt without the last place where the file's negative text stands with a weight. */
    function removeNegative(text, negative, separator) {
        let found = null;
        for (let start = text.indexOf("(" + negative + ":"); start >= 0; start = text.indexOf("(" + negative + ":", start + 1)) {
            const rest = /^[-+]?[0-9.]+\)/.exec(text.slice(start + negative.length + 2));
            if (rest) found = [start, start + negative.length + 2 + rest[0].length];
        }
        return found ? cut(text, found[0], found[1], separator) : text;
    }

    /**
     * Return both prompts after a click on the card: its tag is taken out where there is one, and otherwise added with
     * the activation text and the negative text. Clicking twice gives back the same texts.
     *
     * card: {tag, names, weight, activation, negative}; options: {separator, weight}, the WebUI's.
     */
    function toggle(prompts, card, options) {
        const separator = options.separator;
        let {positive, negative} = prompts;
        if (findTags(positive, card.names).length) {
            positive = removeTags(positive, card, separator);
            if (card.negative) negative = removeNegative(negative, card.negative, separator);
        } else {
            const words = card.activation ? " " + card.activation : "";
            positive = append(positive, `<lora:${card.tag}:${card.weight || options.weight}>${words}`, separator);
            if (card.negative) negative = append(negative, `(${card.negative}:1)`, separator);
        }
        return {positive, negative};
    }

    const NOTICE = /^\s*LoRA (error|warning|note|info): /;

    /** Return how serious a line under the picture is, "" where it is not ours. */
    function severityOf(line) {
        const found = NOTICE.exec(line);
        return found ? found[1] : "";
    }

    if (typeof module === "object" && module.exports) {
        module.exports = {findTags, means, severityOf, toggle};
        return;
    }

    // --- the page ----------------------------------------------------------------------------------------------

    const TABS = ["txt2img", "img2img"];
    const FIRST = 60;
    const MORE = 60;
    const MOST_ASKED = 300; // that the server gives at once
    // So many cards are in the page at once. Of those that are far away a gap stays, so that thousands cost what hundreds do.
    const MOST = 480;
    const KEPT = 360;
    const TYPING_MS = 150;
    const LOOK_MS = 300;

    const CARD = ".card[data-tag]";

    const byId = (id) => gradioApp().getElementById(id);

    /** Return the parts of one tab's Lora page; null where it is not there, or is the built-in extension's. */
    function partsOf(tab) {
        const holder = byId(`${tab}_lora_cards_html`);
        const cards = byId(`${tab}_lora_cards`);
        if (!holder || !cards || !holder.querySelector(".lora-runtime-page")) return null;
        return {
            holder,
            cards,
            search: byId(`${tab}_lora_extra_search`),
            direction: byId(`${tab}_lora_extra_sort_dir`),
            controls: byId(`${tab}_lora_controls`),
        };
    }

    /** Return how many cards stand side by side. */
    function columnsOf(cards) {
        let count = 1;
        while (count < cards.length && cards[count].offsetTop === cards[0].offsetTop) count++;
        return count;
    }

    /** Return how many cards stand side by side, how high a row is, and how many cards some whole rows have. */
    function measured(cards) {
        const columns = columnsOf(cards);
        const row = cards.length > columns ? cards[columns].offsetTop - cards[0].offsetTop : cards[0].offsetHeight;
        return {columns, row, limit: Math.min(MOST_ASKED, columns * Math.ceil(MORE / columns))};
    }

    function promptArea(tab, negative) {
        return gradioApp().querySelector(`#${tab}_${negative ? "neg_prompt" : "prompt"} > label > textarea`);
    }

    async function ask(path, values) {
        const answer = await fetch(`./lora-runtime/${path}?${new URLSearchParams(values)}`);
        if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
        return answer.json();
    }

    /** The Lora page of one tab: what it shows, and what it was asked to. */
    class LoraPage {
        constructor(tab) {
            this.tab = tab;
            this.folder = "";
            this.start = 0; // which of the cards that are found is the first in the page
            this.gap = 0; // the height of those before it
            this.shown = 0; // which comes after the last one in the page
            this.total = 0;
            this.asked = 0; // the number of the last question; answers to earlier ones are dropped
            this.loading = false;
            this.first = ""; // the first cards as they came, to see whether anything has changed
            this.timer = 0;
            this.marked = null; // the prompt for which cards were marked
            this.watcher = null;
            this.words = ""; // what is searched: the WebUI makes an empty field when it is refreshed
            this.element = null; // the mark of our page, another one after a refresh
            this.checkpoint = ""; // for which the cards were made
            this.failed = false; // whether cards could not be fetched, until somebody asks for them again
            this.asks = {}; // what the filters add to each question
            this.tags = ""; // those of the prompt for which cards were marked
            this.states = new WeakMap(); // of each card its names, and the tags for which it was marked
            this.families = {}; // how many files each has
            this.onAnswer = () => {}; // told of each answer once its cards are there
        }

        /** Return whether the WebUI has put another page in the place of the one whose cards were asked for. */
        isReplaced() {
            const parts = partsOf(this.tab);
            return Boolean(parts) && parts.holder.querySelector(".lora-runtime-page") !== this.element;
        }

        /** Give a page that was made anew the search and the folder that there were. */
        settle(parts) {
            const element = parts.holder.querySelector(".lora-runtime-page");
            if (element === this.element) return;
            this.element = element;
            this.first = "";
            if (parts.search && this.words) parts.search.value = this.words;
            if (this.folder) markFolder(parts, this.folder);
        }

        /** Say that cards could not be fetched, and wait for a click instead of asking again and again. */
        fail(error) {
            console.error("LoRA Runtime:", error);
            this.failed = true;
            const parts = partsOf(this.tab);
            if (!parts || parts.cards.querySelector(".lora-runtime-failed")) return;
            const note = document.createElement("button");
            note.className = "lora-runtime-note lora-runtime-failed";
            note.textContent = `The cards could not be fetched (${error.message}). Click to try again.`;
            note.addEventListener("click", () => {
                note.remove();
                this.failed = false;
                this.first = "";
                this.reload();
            });
            parts.cards.append(note);
        }

        question(offset, limit) {
            const parts = partsOf(this.tab);
            const sort = parts.controls && parts.controls.querySelector(
                ".extra-network-control--sort.extra-network-control--enabled");
            const asked = {
                tabname: this.tab,
                q: parts.search ? parts.search.value : "",
                folder: this.folder,
                sort: sort ? sort.dataset.sortkey : "default",
                dir: parts.direction ? parts.direction.dataset.sortdir : "Ascending",
                offset,
                limit,
            };
            return Object.assign(asked, this.asks);
        }

        /** Fetch the first cards again; the page stays as it is, scrolled as it is, if they are still the same. */
        async reload() {
            const found = partsOf(this.tab);
            if (!found) return;
            this.settle(found);
            const number = ++this.asked;
            const question = this.question(0, FIRST);
            this.failed = false;
            this.loading = true;
            try {
                const answer = await ask("cards", question);
                const parts = partsOf(this.tab);
                if (number !== this.asked || !parts) return;
                const same = JSON.stringify([question, answer]);
                if (same !== this.first || !parts.cards.querySelector(".card[data-tag]")) {
                    this.first = same;
                    parts.cards.innerHTML = answer.html;
                    parts.cards.scrollTop = 0;
                    this.start = this.gap = 0;
                    this.took(answer);
                } else {
                    // The WebUI's search on another page hides cards on all pages.
                    parts.cards.querySelectorAll(".card.hidden").forEach((card) => card.classList.remove("hidden"));
                }
            } catch (error) {
                if (number === this.asked) this.fail(error);
            } finally {
                if (number === this.asked) this.loading = false;
            }
            this.watch();
        }

        async more() {
            if (this.loading || this.failed || this.shown >= this.total || !partsOf(this.tab)) return;
            const number = ++this.asked;
            this.loading = true;
            try {
                const answer = await ask("cards", this.question(this.shown, MORE));
                const parts = partsOf(this.tab);
                if (number !== this.asked || !parts) return;
                parts.cards.insertAdjacentHTML("beforeend", answer.html);
                this.leaveFirst(parts);
                this.took(answer);
            } catch (error) {
                if (number === this.asked) this.fail(error);
            } finally {
                if (number === this.asked) this.loading = false;
            }
            this.watch();
        }

        /** Fetch those before the first card, or, where the user has gone further up than that, those that belong there. */
        async before() {
            const found = partsOf(this.tab);
            if (this.loading || this.failed || !this.start || !found) return;
            const cards = found.cards.querySelectorAll(CARD);
            if (!cards.length) return;
            const {columns, row, limit} = measured(cards);
            if (found.cards.scrollTop + found.cards.clientHeight < this.gap) {
                await this.jump(Math.min(this.start, columns * Math.floor(found.cards.scrollTop / row)));
                return;
            }
            const offset = Math.max(0, this.start - limit);
            const number = ++this.asked;
            this.loading = true;
            try {
                const answer = await ask("cards", this.question(offset, this.start - offset));
                const parts = partsOf(this.tab);
                if (number !== this.asked || !parts) return;
                const first = parts.cards.querySelector(CARD);
                const top = first.offsetTop;
                first.insertAdjacentHTML("beforebegin", answer.html);
                this.start = offset;
                this.setGap(parts, offset ? this.gap - (first.offsetTop - top) : 0);
                parts.cards.scrollTop += first.offsetTop - top; // as where the page has another width by now
                this.leaveLast(parts);
                this.took({shown: this.shown, total: answer.total});
            } catch (error) {
                if (number === this.asked) this.fail(error);
            } finally {
                if (number === this.asked) this.loading = false;
            }
            this.watch();
        }

        /** Fetch the cards from a place on, the first of a row, in the place of all that are there. */
        async jump(offset) {
            const {columns, row, limit} = measured(partsOf(this.tab).cards.querySelectorAll(CARD));
            const number = ++this.asked;
            this.loading = true;
            try {
                const answer = await ask("cards", this.question(offset, limit));
                const parts = partsOf(this.tab);
                if (number !== this.asked || !parts) return;
                parts.cards.innerHTML = answer.html;
                this.start = offset;
                this.setGap(parts, row * offset / columns);
                this.took(answer);
            } catch (error) {
                if (number === this.asked) this.fail(error);
            } finally {
                if (number === this.asked) this.loading = false;
            }
            this.watch();
        }

        /** Return the first or the last of all cards that are found, once it is there; null where it cannot be had. */
        async edge(atEnd) {
            const found = partsOf(this.tab);
            const cards = found ? found.cards.querySelectorAll(CARD) : [];
            if (!cards.length) return null;
            const {columns, limit} = measured(cards);
            if (!atEnd && this.start) await this.jump(0);
            if (atEnd && this.shown < this.total) await this.jump(Math.max(0, columns * Math.ceil((this.total - limit) / columns)));
            const parts = partsOf(this.tab);
            if (!parts || (atEnd ? this.shown < this.total : this.start)) return null;
            const all = parts.cards.querySelectorAll(CARD);
            return all[atEnd ? all.length - 1 : 0] || null;
        }

        setGap(parts, height) {
            this.gap = Math.max(0, height);
            let gap = parts.cards.querySelector(".lora-runtime-gap");
            if (!gap) {
                gap = document.createElement("i"); // no div: the last card is found as the last of these
                gap.className = "lora-runtime-gap";
                parts.cards.insertBefore(gap, parts.cards.firstChild);
            }
            gap.style.height = `${this.gap}px`;
        }

        /** Take the first rows out where there are many cards, as far as they are out of sight and nobody is in them. */
        leaveFirst(parts) {
            const cards = [...parts.cards.querySelectorAll(CARD)];
            if (cards.length <= MOST) return;
            const columns = columnsOf(cards);
            const limit = parts.cards.scrollTop - parts.cards.clientHeight + cards[0].offsetTop - this.gap;
            let count = columns * Math.floor((cards.length - KEPT) / columns);
            while (count > 0 && cards[count].offsetTop > limit) count -= columns;
            if (count <= 0 || cards.slice(0, count).some((card) => card.contains(document.activeElement))) return;
            const height = cards[count].offsetTop - cards[0].offsetTop;
            cards.slice(0, count).forEach((card) => card.remove());
            this.start += count;
            this.setGap(parts, this.gap + height);
        }

        /** Take what comes last out, likewise. */
        leaveLast(parts) {
            const cards = [...parts.cards.querySelectorAll(CARD)];
            const limit = parts.cards.scrollTop + 2 * parts.cards.clientHeight + cards[0].offsetTop - this.gap;
            const gone = cards.slice(KEPT).filter((card) => card.offsetTop > limit);
            if (cards.length <= MOST || !gone.length || gone.some((card) => card.contains(document.activeElement))) return;
            for (const note of parts.cards.querySelectorAll(".lora-runtime-refused")) note.remove();
            gone.forEach((card) => card.remove());
            this.shown -= gone.length;
        }

        took(answer) {
            this.shown = answer.shown;
            this.total = answer.total;
            const parts = partsOf(this.tab);
            if (answer.families) this.families = answer.families;
            if (answer.note) parts.cards.insertAdjacentHTML("beforeend", answer.note);
            this.count(parts);
            this.marked = null;
            this.mark();
            this.onAnswer(answer);
        }

        /** Say how many cards there are, in the bar above them: the program's own controls fill their line. */
        count(parts) {
            const bar = parts.holder.querySelector(".lora-runtime-filters");
            if (!bar) return; // it is told again once the bar is there
            const end = bar.querySelector(".lora-runtime-status");
            if (!bar.querySelector(".lora-runtime-ask")) {
                const button = reportButton(this.tab);
                button.className += " lora-runtime-button";
                bar.insertBefore(button, end);
            }
            let line = bar.querySelector(".lora-runtime-count");
            if (!line) {
                line = document.createElement("small");
                line.className = "lora-runtime-count";
                bar.insertBefore(line, end);
            }
            const number = (value) => value.toLocaleString("en");
            line.textContent = this.shown < this.total
                ? `${number(this.shown)} of ${number(this.total)}` : number(this.total);
        }

        /** Fetch more when the last card comes near. */
        watch() {
            if (this.watcher) this.watcher.disconnect();
            const parts = partsOf(this.tab);
            const last = parts && parts.cards.querySelector(".card:last-of-type");
            if (!last || this.failed || (this.shown >= this.total && !this.start)) return;
            const gap = this.start ? parts.cards.querySelector(".lora-runtime-gap") : null;
            this.watcher = new IntersectionObserver((seen) => {
                const near = seen.filter((item) => item.isIntersecting);
                if (gap && near.some((item) => item.target === gap)) this.before();
                else if (near.length) this.more();
            }, {root: parts.cards, rootMargin: "800px 0px 800px 0px"});
            this.watcher.observe(last);
            if (gap) this.watcher.observe(gap);
        }

        /** Mark the cards whose tag is in the prompt. */
        mark() {
            const area = promptArea(this.tab, false);
            const parts = partsOf(this.tab);
            if (!area || !parts || area.value === this.marked) return;
            const fresh = this.marked === null;
            this.marked = area.value;
            const names = allTags(area.value).map((tag) => tag.name);
            const tags = names.join("\n");
            if (!fresh && tags === this.tags) return; // words between the tags: nothing is to be marked at each key
            this.tags = tags;
            const written = names.map(spellings);
            // Thousands of cards: of each the names are read once, and what is marked for these tags stays.
            for (const card of parts.holder.querySelectorAll("[data-tag]")) {
                let state = this.states.get(card);
                if (!state) this.states.set(card, state = {tags: "", chosen: false, names: null});
                if (state.tags === tags) continue;
                state.tags = tags;
                if (!state.names) state.names = namesOf(card).map((name) => name.normalize("NFC"));
                const chosen = written.some((wanted) => fits(wanted, state.names));
                if (chosen === state.chosen) continue;
                state.chosen = chosen;
                card.classList.toggle("lora-runtime-chosen", chosen);
                const choose = card.querySelector(".lora-runtime-choose");
                if (choose) choose.setAttribute("aria-pressed", String(chosen));
            }
        }
    }

    const pages = Object.fromEntries(TABS.map((tab) => [tab, new LoraPage(tab)]));

    /** Return the tab in whose Lora page an element lies, or "". */
    function tabOf(element) {
        return TABS.find((tab) => {
            const parts = partsOf(tab);
            return parts && parts.holder.contains(element);
        }) || "";
    }

    function namesOf(card) {
        try {
            return JSON.parse(card.dataset.names);
        } catch (error) {
            return [card.dataset.tag];
        }
    }

    function clickCard(tab, card) {
        const areas = [promptArea(tab, false), promptArea(tab, true)];
        if (!areas[0] || !areas[1]) return;
        const separator = opts.extra_networks_add_text_separator;
        const data = card.dataset;
        const after = toggle(
            {positive: areas[0].value, negative: areas[1].value},
            {tag: data.tag, names: namesOf(card), weight: data.weight, activation: data.activation, negative: data.negative},
            {separator: separator === undefined ? " " : separator, weight: opts.extra_networks_default_multiplier}
        );
        [after.positive, after.negative].forEach((text, index) => {
            if (areas[index].value === text) return;
            areas[index].value = text;
            updateInput(areas[index]);
        });
        pages[tab].mark();
    }

    /** Show one folder only, or all of them again. */
    function chooseFolder(tab, folder) {
        pages[tab].folder = folder;
        markFolder(partsOf(tab), folder);
        pages[tab].reload();
    }

    function markFolder(parts, folder) {
        for (const item of parts.holder.querySelectorAll("[data-folder]")) {
            const chosen = item.dataset.folder === folder;
            item.classList.toggle("lora-runtime-chosen", chosen && folder !== "");
            if (chosen) item.dataset.selected = ""; else delete item.dataset.selected;
        }
    }

    /** Open or close a folder of the tree; its files are fetched when it is first opened. */
    async function openFolder(tab, line, open) {
        const list = line.nextElementSibling;
        list.hidden = !open;
        if (open) line.dataset.expanded = ""; else delete line.dataset.expanded;
        if (!open || line.dataset.files === "0" || line.dataset.fetched) return;
        line.dataset.fetched = "1";
        const failed = list.querySelector(".lora-runtime-failed");
        if (failed) failed.remove();
        try {
            const answer = await ask("files", {tabname: tab, folder: line.dataset.folder});
            list.insertAdjacentHTML("beforeend", answer.html);
            pages[tab].marked = null;
        } catch (error) {
            delete line.dataset.fetched;
            console.error("LoRA Runtime:", error);
            const note = document.createElement("li");
            note.className = "tree-list-item lora-runtime-note lora-runtime-failed";
            note.textContent = `The files could not be fetched (${error.message}). Open the folder again to try again.`;
            list.append(note);
        }
    }

    function clickTree(tab, line, onChevron) {
        const open = "expanded" in line.dataset;
        if (onChevron) {
            openFolder(tab, line, !open);
        } else if (pages[tab].folder === line.dataset.folder && open) {
            openFolder(tab, line, false);
            chooseFolder(tab, "");
        } else {
            if (!open) openFolder(tab, line, true);
            chooseFolder(tab, line.dataset.folder);
        }
    }

    // On the document: the WebUI replaces a page's elements whenever it is refreshed.
    document.addEventListener("click", (event) => {
        const place = event.target.closest && event.target.closest("[data-tag], [data-folder]");
        if (!place || event.target.closest(".card-button, a, details")) return;
        const tab = tabOf(place);
        if (!tab) return;
        if (place.dataset.tag !== undefined) clickCard(tab, place);
        else if (place.matches(".lora-runtime-dir")) chooseFolder(tab, place.dataset.folder);
        else clickTree(tab, place, Boolean(event.target.closest(".tree-list-item-action--leading")));
    });

    // Captured on its way down: the WebUI's own listener would search the cards that are there.
    document.addEventListener("input", (event) => {
        const tab = TABS.find((name) => event.target.id === `${name}_lora_extra_search`);
        if (!tab || !partsOf(tab)) return;
        event.stopPropagation();
        pages[tab].words = event.target.value;
        clearTimeout(pages[tab].timer);
        pages[tab].timer = setTimeout(() => pages[tab].reload(), TYPING_MS);
    }, true);

    /** Put our functions where the WebUI looks for those that filter and sort a page, once it has put its own there. */
    function takeOver() {
        if (typeof extraNetworksApplyFilter !== "object" || typeof extraNetworksApplySort !== "object") return;
        for (const tab of TABS) {
            const page = `${tab}_lora`;
            const own = pages[tab];
            const theirs = extraNetworksApplyFilter[page];
            if (!theirs || theirs === own.apply || !partsOf(tab)) continue;
            own.apply = () => own.reload();
            extraNetworksApplyFilter[page] = own.apply;
            extraNetworksApplySort[page] = own.apply;
            own.reload();
        }
    }

    // --- the report ------------------------------------------------------------------------------------------------

    /** Return a button that shows what the LoRAs of a tab's prompt do together. */
    function reportButton(tab) {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "lora-runtime-ask";
        button.textContent = "LoRA report";
        button.title = "What the LoRAs of the prompt do together, block by block";
        button.addEventListener("click", () => showReport(tab));
        return button;
    }

    const noReport = () => {};
    let closeReport = noReport;

    /** Ask for the report on a tab's prompt and show it over the page, until it is closed. */
    async function showReport(tab) {
        closeReport();
        const area = promptArea(tab, false);
        if (!area) return;
        const panel = document.createElement("div");
        panel.className = "lora-runtime-report";
        const close = document.createElement("button");
        close.type = "button";
        close.className = "lora-runtime-close";
        close.textContent = "Close";
        const body = document.createElement("div");
        body.textContent = "The LoRAs of the prompt are being compared …";
        panel.append(close);
        panel.append(body);
        gradioApp().append(panel);
        closeReport = () => {
            panel.remove();
            closeReport = noReport;
        };
        close.addEventListener("click", () => closeReport());
        try {
            const answer = await fetch("./lora-runtime/report", {
                method: "POST",
                headers: {"Content-Type": "application/json"},
                body: JSON.stringify({prompt: area.value}),
            });
            const found = await answer.json().catch(() => ({}));
            if (!answer.ok) throw new Error(typeof found.detail === "string" ? found.detail : `${answer.status} ${answer.statusText}`);
            body.innerHTML = found.html;
            if (found.balanced) panel.append(balanceButton(area, area.value, found.balanced));
        } catch (error) {
            console.error("LoRA Runtime:", error);
            body.textContent = `There is no report (${error.message}).`;
        }
    }

    /** Return a button that writes the strengths that keep the norm into the prompt that was asked about. */
    function balanceButton(area, asked, balanced) {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "lora-runtime-balance";
        button.textContent = "Write these strengths into the prompt";
        button.addEventListener("click", () => {
            if (area.value !== asked) { // it would be lost
                button.textContent = "The prompt is another by now: ask for the report again";
                return;
            }
            area.value = balanced;
            updateInput(area);
            closeReport();
        });
        return button;
    }

    // On its way down, and no further: the program interrupts a generation at Escape.
    document.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || closeReport === noReport) return;
        event.stopPropagation();
        closeReport();
    }, true);

    /** Give our lines under the picture the colour of what they say; the WebUI has one for all. A button goes with them. */
    function colourNotices(tab) {
        const log = byId(`html_log_${tab}`);
        for (const comments of log ? log.querySelectorAll(".comments") : []) {
            for (const node of [...comments.childNodes]) {
                const severity = node.nodeType === Node.TEXT_NODE ? severityOf(node.textContent) : "";
                if (!severity) continue;
                const line = document.createElement("span");
                line.className = `lora-runtime-said lora-runtime-said-${severity}`;
                line.textContent = node.textContent;
                comments.replaceChild(line, node);
                if (!comments.querySelector(".lora-runtime-ask")) comments.append(reportButton(tab));
            }
        }
    }

    setInterval(() => {
        if (document.hidden || typeof gradioApp !== "function") return;
        takeOver();
        TABS.forEach(colourNotices);
        // Cards say what fits the checkpoint. And with many files the page itself comes after the cards that were asked for.
        const checkpoint = typeof opts === "object" ? opts.sd_model_checkpoint || "" : "";
        for (const page of Object.values(pages)) {
            const another = page.checkpoint && page.checkpoint !== checkpoint;
            if (page.element && (another || page.isReplaced())) page.reload();
            page.checkpoint = checkpoint;
        }
        // Prompts also change without an event: pasted parameters, styles, other extensions.
        TABS.forEach((tab) => pages[tab].mark());
    }, LOOK_MS);

    // --- what the editor calls -------------------------------------------------------------------------------------

    /** Replace one card by what it is now, in all tabs; `before` is its name until now, where that is another. */
    async function refreshCard(tab, name, before) {
        for (const each of TABS) {
            const parts = partsOf(each);
            const old = parts && [...parts.cards.querySelectorAll(".card")].find((card) => card.dataset.name === (before || name));
            if (!old) continue;
            try {
                const answer = await ask("card", {tabname: each, name});
                if (answer.html) old.outerHTML = answer.html;
            } catch (error) {
                console.error("LoRA Runtime:", error);
            }
            pages[each].first = "";
            pages[each].marked = null;
            pages[each].watch();
        }
    }

    /** Show the folders of a tab as they are now, the opened ones of the tree opened. */
    async function refreshFolders(tab) {
        const parts = partsOf(tab);
        const holder = parts && parts.holder.querySelector(".extra-network-dirs, .extra-network-tree");
        if (!holder) return;
        try {
            const answer = await ask("folders", {tabname: tab});
            const opened = [...holder.querySelectorAll("[data-expanded]")].map((line) => line.dataset.folder);
            holder.innerHTML = answer.html;
            markFolder(parts, pages[tab].folder);
            for (const line of holder.querySelectorAll("[data-folder]")) {
                if (opened.includes(line.dataset.folder)) openFolder(tab, line, true);
            }
        } catch (error) {
            console.error("LoRA Runtime:", error);
        }
    }

    /** Close the editor and show the new card, unless saving has left something to say. */
    function saved(tab, name, status) {
        if (status) return;
        closePopup();
        refreshCard(tab, name);
    }

    // The rest is for javascript/lora_runtime_cards.js.
    window.loraRuntime = {refreshCard, refreshFolders, saved, toggle, ask, pages, partsOf, promptArea, tabOf};
})();
