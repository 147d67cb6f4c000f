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
    const ids = {};
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
        Object.assign(found, {folders, search: ids.txt2img_lora_extra_search, cards: ids.txt2img_lora_cards});
    };
    found.refresh();
    const listeners = {};
    const application = {getElementById: (id) => ids[id] || null, querySelector: (id) => id.startsWith("#txt2img") ? prompt : null};
    found.opts = {sd_model_checkpoint: "a"};
    const context = vm.createContext({
        window: {}, URLSearchParams, console: {error: () => found.errors++}, opts: found.opts,
        gradioApp: () => application, updateInput: () => {}, closePopup: () => {},
        document: {createElement: () => new Element(), addEventListener: (name, f) => { listeners[name] = f; }, hidden: false},
        setInterval: (f) => found.ticks.push(f), setTimeout: (f) => { f(); return 1; }, clearTimeout: () => {},
        IntersectionObserver: class {
            constructor(f) { found.near = () => f([{isIntersecting: true}]); }
            observe() {}
            disconnect() { found.near = null; }
        },
        extraNetworksApplyFilter: {txt2img_lora: () => {}}, extraNetworksApplySort: {},
        fetch: async (url) => {
            found.asked.push(Object.fromEntries(new URL(url, "http://host/").searchParams));
            const answer = found.answer();
            if (!answer) return {ok: false, status: 500, statusText: "Internal Server Error"};
            return {ok: true, json: async () => answer};
        },
    });
    vm.runInContext(fs.readFileSync(process.argv[2], "utf8"), context);
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

const cases = {
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
