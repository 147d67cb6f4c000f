/*
 * What one does with the cards of the Lora tab beside choosing them: which are shown (favourites, families, what fits, used last), the
 * keyboard, and films. The window with a large picture, the words, and the file's name and place is that of the studio too:
 * lora_runtime/panel/web/card_window.js, fetched once the page is there. Texts that the page shows are looked up in the WebUI's
 * `localization`. What a server or a file says becomes text, never markup.
 */
(function() {
    "use strict";

    const TABS = ["txt2img", "img2img"];
    const LOOK_MS = 300;
    let runtime = null; // what javascript/lora_runtime.js gives, once that is there
    let ui = null; // what the modules give that the studio has too: dom.js and card_window.js
    let state = "none"; // of these: then "loading", "there"

    const t = (text) => ui.t(text);

    // --- which cards are shown -----------------------------------------------------------------------------------

    /** The buttons above the cards of one tab, and what they ask for. They are made anew where the WebUI replaces its page. */
    class Filters {
        constructor(tab) {
            this.tab = tab;
            this.on = {favourites: false, fits: false, recent: false};
            this.families = new Set();
            this.counts = runtime.pages[tab].families;
            this.bar = null;
            this.shown = ""; // the families as they are drawn
            runtime.pages[tab].onAnswer = (answer) => this.answered(answer);
        }

        settle() {
            const parts = runtime.partsOf(this.tab);
            if (!parts || (this.bar && parts.holder.contains(this.bar))) return;
            const toggle = (key, text, hint) => ui.button(t(text), (event) => this.switch(key, event.currentTarget), {
                title: t(hint), "aria-pressed": String(this.on[key]),
            });
            this.list = ui.make("div", {class: "lora-runtime-families", role: "group", "aria-label": t("Model families")});
            this.status = ui.make("div", {class: "lora-runtime-status", role: "status"});
            this.bar = ui.make(
                "div", {class: "lora-runtime-filters", role: "group", "aria-label": t("Which LoRAs are shown")},
                toggle("favourites", "★ Favourites", "Only those with a star"),
                toggle("fits", "Fits this checkpoint", "Only those that were made for the checkpoint that is loaded"),
                toggle("recent", "Last used first", "Those that were used last come first"),
                this.list,
                ui.button(t("Bin"), (event) => opened[this.tab].bin(event.currentTarget), {title: t("What was thrown away, and putting it back")}),
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
                const chip = ui.button(`${name === "unknown" ? t("Unknown") : name} ${count}`, () => {
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
            if (undo) this.status.append(" ", ui.button(t("Undo"), () => opened[this.tab].page.change(undo).catch((error) => this.tell(error.message))));
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
    };
    const EDGES = {Home: false, End: true};

    function keyed(event) {
        const card = event.target.closest && event.target.closest(CARD);
        const tab = card && runtime.tabOf(card);
        if (!tab || event.altKey || event.ctrlKey || event.metaKey) return;
        const move = MOVES[event.key];
        if (move) {
            const next = move(card);
            if (next) chooser(next).focus();
        } else if (event.key in EDGES) {
            runtime.pages[tab].edge(EDGES[event.key]).then((edge) => edge && chooser(edge).focus());
        } else if ((event.key === "Enter" || event.key === " ") && event.target.matches("div.card-button")) {
            event.target.click();
        } else if (event.key === "f" || event.key === "F") {
            star(card.querySelector(".lora-runtime-star"));
        } else if (event.key === "i" || event.key === "I") {
            opened[tab].details(card.dataset.name, chooser(card));
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
            await ui.answerOf("./lora-runtime/star", {name, on});
        } catch (error) {
            show(!on);
            TABS.forEach((tab) => filters[tab].tell(error.message));
        }
    }

    // --- the window ----------------------------------------------------------------------------------------------

    /** What the window of a tab's cards asks: see card_window.js. */
    class Opened {
        constructor(tab) {
            this.tab = tab;
        }

        home() {
            return gradioApp(); // the page's own children, for the theme's variables stand there
        }

        area() {
            return runtime.promptArea(this.tab, false);
        }

        details(name) {
            return ui.answerOf(`./lora-runtime/details?${new URLSearchParams({name})}`);
        }

        bin() {
            return ui.answerOf("./lora-runtime/bin");
        }

        tell(text) {
            filters[this.tab].tell(text);
        }

        /** What stands in the place of a part of a card that the page has made anew meanwhile. */
        heir(part) {
            const old = part.closest(CARD);
            if (!old) return null;
            const cards = [...gradioApp().querySelectorAll(CARD)];
            const card = cards.find((each) => each.dataset.name === old.dataset.name && each.offsetParent);
            return card ? chooser(card) : null;
        }

        /** Ask for another name or place of a file, show it, and offer the way back. */
        async change(values) {
            const answer = await ui.answerOf("./lora-runtime/file", values);
            if (values.action === "bin") remove(values.name);
            else if (values.action === "restore") reload();
            else await runtime.refreshCard(this.tab, answer.name, values.name);
            if (values.action !== "rename") TABS.forEach((tab) => runtime.refreshFolders(tab)); // nobody waits for these
            TABS.forEach((tab) => filters[tab].tell(answer.said, tab === this.tab ? answer.undo : null));
            const parts = runtime.partsOf(this.tab);
            const card = parts && [...parts.cards.querySelectorAll(CARD)].find((each) => each.dataset.name === answer.name);
            if (card) enter(this.tab, card);
            ui.filesChanged();
            return answer;
        }

        changed() {
            const undo = filters[this.tab].status && filters[this.tab].status.querySelector("button");
            if (undo) undo.focus();
        }
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

    const opened = {}; // of each tab its window

    // --- beginning -----------------------------------------------------------------------------------------------

    document.addEventListener("keydown", (event) => state === "there" && keyed(event));
    document.addEventListener("focusin", (event) => {
        const card = state === "there" && event.target.closest && event.target.closest(CARD);
        const tab = card && runtime.tabOf(card);
        if (tab && card !== current[tab]) enter(tab, card);
    });
    document.addEventListener("click", (event) => {
        const place = state === "there" && event.target.closest && event.target.closest(".lora-runtime-star, .lora-runtime-details-button");
        if (!place) return;
        if (place.matches(".lora-runtime-star")) {
            star(place);
            return;
        }
        const tab = runtime.tabOf(place);
        if (tab) opened[tab].details(place.closest("[data-name]").dataset.name, place);
    });

    /** Fetch the modules, whose address changes with their content. */
    async function load() {
        const answer = await fetch("./lora-runtime/web");
        if (!answer.ok) throw new Error(`web: ${answer.status} ${answer.statusText}`);
        const {hash} = await answer.json();
        const modules = ["dom", "card_window"].map((name) => new URL(`./lora-runtime/web/${hash}/${name}.js`, document.baseURI).href);
        ui = Object.assign({}, ...await Promise.all(modules.map((address) => import(address))));
        for (const tab of TABS) {
            filters[tab] = new Filters(tab);
            opened[tab] = new ui.CardWindow(new Opened(tab));
        }
        ui.playFilms((element) => {
            const card = element.closest(CARD);
            return card && card.querySelector("video.preview");
        });
        state = "there";
    }

    const timer = setInterval(() => {
        if (document.hidden || typeof gradioApp !== "function" || !window.loraRuntime) return;
        runtime = window.loraRuntime;
        if (state === "none" && TABS.some((tab) => runtime.partsOf(tab))) {
            state = "loading";
            load().catch((error) => {
                clearInterval(timer);
                console.error("LoRA Runtime:", error);
            });
        }
        if (state !== "there") return;
        for (const tab of TABS) {
            filters[tab].settle();
            enter(tab);
        }
    }, LOOK_MS);
})();
