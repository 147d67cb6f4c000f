// A double of the page that javascript/lora_runtime.js runs in: one tab, the WebUI's ids, timers and fetch by hand.
"use strict";
const fs = require("fs");
const vm = require("vm");

class Element {
    constructor() {
        this.value = "";
        this.dataset = {};
        this.classes = new Set();
        this.classList = {toggle: (name, on) => on ? this.classes.add(name) : this.classes.delete(name)};
        this.added = [];
        this.listeners = {};
        this.html = "";
    }
    set innerHTML(html) { this.html = html; this.added = []; }
    get innerHTML() { return this.html; }
    insertAdjacentHTML(_, html) { this.html += html; }
    append(element) { this.added.push(element); element.parent = this; }
    insertBefore(element) { this.added.push(element); }
    remove() { this.parent.added = this.parent.added.filter((other) => other !== this); }
    addEventListener(name, listener) { this.listeners[name] = listener; }
    querySelector(selector) {
        const own = this.added.find((element) => (element.className || "").split(" ").includes(selector.slice(1)));
        if (own) return own;
        return selector.startsWith(".card") && this.html.includes("card") ? new Element() : null;
    }
    querySelectorAll() { return []; }
    contains() { return false; }
}

function page() {
    const found = {asked: [], errors: 0, answer: () => ({total: 0, shown: 0, html: ""}), ticks: [], near: null};
    const prompt = new Element();
    const negative = new Element();
    const ids = {};
    Object.assign(found, {prompt, negative, ids, told: [], closed: 0, over: [], posted: []});
    found.refresh = () => { // the WebUI makes the page's elements anew
        const mark = new Element();
        const folders = ["", "style"].map((name) => Object.assign(new Element(), {dataset: {folder: name}}));
        const holder = new Element();
        holder.querySelector = () => mark;
        holder.querySelectorAll = (selector) => selector === "[data-folder]" ? folders : [];
        Object.assign(ids, {
            txt2img_lora_cards_html: holder,
            txt2img_lora_cards: new Element(),
            txt2img_lora_extra_search: new Element(),
            txt2img_lora_controls: new Element(),
        });
        Object.assign(found, {holder, folders, search: ids.txt2img_lora_extra_search, cards: ids.txt2img_lora_cards});
    };
    found.refresh();
    const listeners = {};
    const application = {append: (element) => { found.over.push(element); element.parent = {get added() { return found.over; }, set added(left) { found.over = left; }}; }, getElementById: (id) => ids[id] || null, querySelector: (id) => id.startsWith("#txt2img") ? (id.includes("neg_prompt") ? negative : prompt) : null};
    found.opts = {sd_model_checkpoint: "a", extra_networks_add_text_separator: " ", extra_networks_default_multiplier: 1};
    found.window = {};
    const context = vm.createContext({
        window: found.window, URLSearchParams, Node: {TEXT_NODE: 3}, console: {error: () => found.errors++}, opts: found.opts,
        gradioApp: () => application, updateInput: (area) => found.told.push(area.value), closePopup: () => found.closed++,
        document: {createElement: () => new Element(), addEventListener: (name, f) => { listeners[name] = f; }, hidden: false},
        setInterval: (f) => found.ticks.push(f), setTimeout: (f) => { f(); return 1; }, clearTimeout: () => {},
        IntersectionObserver: class {
            constructor(f) { found.near = () => f([{isIntersecting: true}]); }
            observe() {}
            disconnect() { found.near = null; }
        },
        extraNetworksApplyFilter: {txt2img_lora: () => {}}, extraNetworksApplySort: {},
        fetch: async (url, how) => {
            if (how) {
                found.posted.push([url, how.method, how.headers["Content-Type"], JSON.parse(how.body)]);
                const [status, body] = await found.report();
                return {ok: status === 200, status, statusText: "Said so", json: async () => body};
            }
            found.asked.push(Object.fromEntries(new URL(url, "http://host/").searchParams));
            const answer = await found.answer();
            if (!answer) return {ok: false, status: 500, statusText: "Internal Server Error"};
            return {ok: true, json: async () => answer};
        },
    });
    vm.runInContext(fs.readFileSync(process.argv[2], "utf8"), context);
    found.editor = found.window.loraRuntime;
    found.press = (key) => listeners.keydown({key, stopPropagation: () => {}});
    found.click = (target) => listeners.click({target});
    found.tick = async () => { found.ticks.forEach((f) => f()); await found.settled(); };
    found.settled = () => new Promise((resolve) => setImmediate(resolve));
    found.type = async (text) => {
        found.search.value = text;
        listeners.input({target: Object.assign(found.search, {id: "txt2img_lora_extra_search"}), stopPropagation: () => {}});
        await found.settled();
    };
    found.choose = async (folder) => {
        const place = found.folders.find((item) => item.dataset.folder === folder);
        place.closest = (selector) => selector.startsWith("[data-tag]") ? place : null;
        place.matches = () => true;
        ids.txt2img_lora_cards_html.contains = () => true;
        listeners.click({target: place});
        await found.settled();
    };
    found.apply = async () => { context.extraNetworksApplyFilter.txt2img_lora(); await found.settled(); };
    return found;
}

/** The prompt, a card with these data, and what is under the picture. */
function furnish(page, data) {
    const card = Object.assign(new Element(), {dataset: data});
    page.holder.querySelectorAll = (selector) => selector === "[data-tag]" ? [card] : [];
    page.holder.contains = (element) => element === card;
    card.closest = (selector) => selector.startsWith("[data-tag]") ? card : null;
    return card;
}

const cases = {
    async click(page) {
        const card = furnish(page, {tag: "ink", names: '["ink", "back\\\\slash"]', weight: "0.8", activation: "wet", negative: "dry"});
        page.answer = () => ({total: 1, shown: 1, html: "<div class=card data-tag=ink>"});
        await page.tick();
        const texts = [];
        for (let i = 0; i < 2; i++) {
            page.click(card);
            texts.push([page.prompt.value, page.negative.value, card.classes.has("lora-runtime-chosen")]);
        }
        return {texts, told: page.told};
    },
    async marks(page) {
        const card = furnish(page, {tag: "ink", names: '["ink", "back\\\\slash", "#0123456789ab"]'});
        await page.tick();
        const chosen = {};
        for (const text of ["a", "<lora:ink:1>", "<LoRA:ink>", "<lora:back\\slash:1>", "<lyco: ink :1>", "<lora:01234567>", "<lora:inky>"]) {
            page.prompt.value = text; // as by "paste": without an event
            await page.tick();
            chosen[text] = card.classes.has("lora-runtime-chosen");
        }
        return chosen;
    },
    async names(page) { // of a card whose names are damaged
        const card = furnish(page, {tag: "ink", names: "no JSON"});
        await page.tick();
        page.prompt.value = "<lora:ink>";
        await page.tick();
        return {chosen: card.classes.has("lora-runtime-chosen")};
    },
    async empty(page) {
        page.answer = () => ({total: 0, shown: 0, html: "<div class=lora-runtime-note>Nothing found</div>", note: "<details>2 files</details>"});
        await page.tick();
        await page.type("nobody");
        const asked = page.asked.length;
        await page.tick();
        return {html: page.cards.html, q: page.asked[asked - 1].q, again: page.asked.length - asked, watched: page.near !== null};
    },
    async late(page) { // an answer to an earlier question comes after that to a later one
        await page.tick();
        const waiting = [];
        page.answer = () => new Promise((resolve) => waiting.push(resolve));
        await page.type("first");
        await page.type("second");
        waiting[1]({total: 1, shown: 1, html: "second"});
        await page.settled();
        waiting[0]({total: 1, shown: 1, html: "first"});
        await page.settled();
        return {html: page.cards.html};
    },
    async notices(page) {
        const text = (textContent) => Object.assign(new Element(), {nodeType: 3, textContent});
        const line = new Element();
        line.childNodes = ["LoRA error: column 3: gone", "\n", "LoRA note: 2 of 3 keys", "Somebody else's line", "LoRA warning: x"].map(text);
        line.replaceChild = (fresh, old) => { line.childNodes[line.childNodes.indexOf(old)] = fresh; };
        page.ids.html_log_txt2img = Object.assign(new Element(), {querySelectorAll: () => [line]});
        await page.tick();
        await page.tick();
        const button = line.querySelector(".lora-runtime-ask");
        return {buttons: line.added.length, button: button.textContent, lines: line.childNodes.map((node) => [node.className || "", node.textContent])};
    },
    async report(page) {
        await page.tick();
        const button = page.holder.querySelector(".lora-runtime-filters").querySelector(".lora-runtime-ask");
        page.prompt.value = "a <lora:ink:1><lora:wash:1>";
        const steps = [];
        const shown = () => page.over.map((panel) => panel.added.map((part) => part.html || part.textContent));
        const ask = async (answer) => {
            page.report = async () => answer;
            button.listeners.click();
            await page.settled();
            await page.settled();
        };
        await ask([200, {html: "<h4>", balanced: "a <lora:ink:0.7><lora:wash:0.7>"}]);
        steps.push(shown());
        page.prompt.value += " and a cat";
        page.over[0].added[2].listeners.click(); // what was written since is not lost
        steps.push([shown(), page.prompt.value]);
        page.prompt.value = "a <lora:ink:1><lora:wash:1>";
        page.over[0].added[2].listeners.click();
        steps.push([shown(), page.prompt.value, [...page.told]]);
        await ask([200, {html: "<p>", balanced: null}]);
        steps.push(shown());
        await ask([503, {detail: "other prompts are being reported on; ask again"}]);
        steps.push(shown());
        await ask([401, {}]);
        steps.push(shown());
        page.press("a");
        page.press("Escape");
        steps.push(shown());
        return {steps, posted: page.posted[0], count: page.posted.length};
    },
    async saved(page) {
        page.answer = () => ({total: 1, shown: 1, html: "<div class=card data-tag=ink>new"});
        await page.tick();
        const card = Object.assign(new Element(), {dataset: {name: "ink"}});
        page.cards.querySelectorAll = (selector) => selector === ".card" ? [card] : [];
        const before = page.asked.length;
        page.editor.saved("txt2img", "ink", "Not saved: the disk is full");
        await page.settled();
        const kept = page.asked.length === before && page.closed === 0;
        page.editor.saved("txt2img", "ink", "");
        await page.settled();
        await page.settled();
        return {kept, closed: page.closed, name: page.asked[before].name, card: card.outerHTML};
    },
    async folder(page) { // of the tree: its files are fetched when it is first opened
        await page.tick();
        const list = new Element();
        const line = Object.assign(new Element(), {dataset: {folder: "/Lora/style", files: "2"}, nextElementSibling: list});
        line.closest = (selector) => selector.startsWith("[data-tag]") ? line : null;
        line.matches = () => false;
        page.holder.contains = () => true;
        const steps = [];
        for (const answer of [null, null, {html: "<li>ink"}, {html: "<li>again"}, {html: "<li>again"}]) {
            page.answer = () => answer;
            page.click(line); // opens it, or closes it
            await page.settled();
            await page.settled();
            const question = page.asked.filter((each) => each.limit === undefined).length;
            steps.push([!list.hidden, list.html, question, list.added.map((note) => note.textContent)]);
        }
        return steps;
    },
    async failure(page) {
        page.answer = () => null;
        for (let i = 0; i < 5; i++) await page.tick();
        const asked = page.asked.length;
        const note = page.cards.querySelector(".lora-runtime-failed");
        page.answer = () => ({total: 1, shown: 1, html: "<div class=card data-tag=ink>"});
        note.listeners.click();
        await page.settled();
        return {asked, said: note.textContent, gone: !page.cards.querySelector(".lora-runtime-failed"), html: page.cards.html};
    },
    async more(page) {
        page.answer = () => ({total: 300, shown: 60, html: "<div class=card data-tag=ink>"});
        await page.tick();
        page.answer = () => null;
        const near = page.near;
        near();
        await page.settled();
        for (let i = 0; i < 5; i++) { near(); await page.tick(); }
        return {offsets: page.asked.map((each) => each.offset), watched: page.near !== null};
    },
    async refresh(page) {
        await page.tick();
        await page.type("boat");
        await page.choose("style");
        page.refresh();
        await page.apply();
        const last = page.asked[page.asked.length - 1];
        const marked = page.folders.filter((item) => item.classes.has("lora-runtime-chosen"));
        return {q: last.q, folder: last.folder, search: page.search.value, marked: marked.map((item) => item.dataset.folder)};
    },
    async checkpoint(page) {
        page.answer = () => ({total: 1, shown: 1, html: `<div class=card data-tag=ink>for ${page.opts.sd_model_checkpoint}`});
        await page.tick();
        await page.tick();
        const before = page.asked.length;
        page.opts.sd_model_checkpoint = "b";
        await page.tick();
        await page.tick();
        return {asked: page.asked.length - before, html: page.cards.html};
    },
};

cases[process.argv[3]](page()).then((found) => process.stdout.write(JSON.stringify(found)));
