// <lora-stack base="…/lora-runtime" for="#prompt textarea">: the LoRAs of a prompt as rows. See lora_runtime/panel/__init__.py.
import {Completion} from "./completion.js";
import {Conflicts} from "./conflicts.js";
import {make, t} from "./dom.js";
import {PromptArea} from "./prompt.js";
import {Row} from "./row.js";
import {Sets} from "./sets.js";

const STYLE = new URL("stack.css", import.meta.url).href;
const BASE = new URL("../..", import.meta.url).href;
// Edits after which the tags have other numbers, or other words stand between them.
const PICTURE_MS = 1000;
const OF_THE_WHOLE = ["delete", "move", "word", "no-word"];

class LoraStack extends HTMLElement {
    constructor() {
        super();
        this.rows = [];
        this.blocks = [];
        this.presets = [];
        this.count = 0;
        this.asked = 0;
        this.shown = null; // the prompt that the rows are about
        this.edits = [];
        this.editing = false;
        this.dragged = -1;
        this.focusNext = null;
        this.prompt = new PromptArea(() => this.getAttribute("for"), () => this.refresh());
        this.list = make("ol", {class: "rows"});
        this.heading = make("h2", {}, t("LoRAs of the prompt"));
        this.order = make("span", {class: "hint"}, t("the picture does not depend on their order"));
        this.none = make("span", {class: "hint", hidden: true}, t("none; write <lora: in it"));
        this.general = make("div", {class: "notices"});
        this.live = make("div", {class: "live", role: "status", "aria-live": "polite"});
        this.sets = new Sets(this);
        this.conflicts = new Conflicts(this);
        this.body = make("section", {class: "stack", hidden: true},
            make("header", {}, this.heading, this.order, this.none, make("span", {class: "openers"}, this.conflicts.opener, this.sets.opener)),
            this.sets.body, this.list, this.conflicts.body, this.general);
        this.body.setAttribute("aria-label", t("LoRAs of the prompt"));
        const root = this.attachShadow({mode: "open"});
        root.append(make("link", {rel: "stylesheet", href: STYLE}), this.body, this.live);
        this.completion = new Completion(this, root);
        this.onFiles = () => this.refresh();
    }

    connectedCallback() {
        this.sets.opener.hidden = !this.hasAttribute("sets");
        this.prompt.start();
        this.completion.start();
        document.addEventListener("lora-files-changed", this.onFiles); // by the cards beside it
        this.watch = setInterval(() => document.hidden || this.rows.forEach((row) => row.opened.region.look()), PICTURE_MS);
    }

    disconnectedCallback() {
        this.prompt.stop();
        this.completion.stop();
        document.removeEventListener("lora-files-changed", this.onFiles);
        clearInterval(this.watch);
    }

    /** Return the address of something of the host's. */
    address(path) {
        return (this.getAttribute("base") || BASE).replace(/\/*$/, "/") + path;
    }

    /** Return the element that shows the picture which was painted last, null where there is none; of a batch not their grid. */
    get picture() {
        const selector = this.getAttribute("picture");
        const found = selector ? [...document.querySelectorAll(selector)].filter((each) => each.naturalWidth) : [];
        const size = (each) => each.naturalWidth * each.naturalHeight;
        const least = Math.min(...found.map(size)); // a grid stands first, and is larger than what is in it
        return found.find((each) => size(each) === least) || null;
    }

    /** Return width and height of the next picture, a square where nothing says them. */
    get pictureSize() {
        return ["picture-width", "picture-height"].map((name) => {
            const selector = this.getAttribute(name);
            const field = selector ? document.querySelector(selector) : null;
            return Number(field && field.value) || 1;
        });
    }

    /** Return what the host answers to a question; null are the values of one that only fetches. */
    async ask(path, values) {
        const answer = await fetch(this.address(path), values === null ? {} : {
            method: "POST",
            headers: {"Content-Type": "application/json"},
            body: JSON.stringify(values),
        });
        if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
        return answer.json();
    }

    /** Say something to whoever listens. */
    say(text) {
        this.live.textContent = text;
    }

    /** Show the prompt as it is now; answers about an older one are dropped. */
    async refresh() {
        if (this.edits.length || this.editing) return; // it comes after them
        const number = ++this.asked;
        const text = this.prompt.text;
        if (!/<|＜|lora/i.test(text)) {
            this.show({tags: [], more: 0, notices: [], blocks: this.blocks, presets: this.presets}, text);
            return;
        }
        try {
            const answer = await this.ask("tags", {prompt: text});
            if (number === this.asked && text === this.prompt.text) this.show(answer, text);
        } catch (error) {
            if (number === this.asked) this.fail(error);
        }
    }

    show({tags, more, notices, blocks, presets}, text) {
        this.shown = text;
        this.blocks = blocks;
        this.presets = presets;
        this.count = tags.length;
        while (this.rows.length > tags.length) this.rows.pop().element.remove();
        while (this.rows.length < tags.length) {
            this.rows.push(new Row(this, this.rows.length));
            this.list.append(this.rows[this.rows.length - 1].element);
        }
        tags.forEach((tag, index) => this.rows[index].show(tag));
        this.general.replaceChildren(...notices.map((notice) => this.notice(notice)));
        if (more) this.general.append(make("p", {class: "notice info"}, `${more} ${t("more tags are not shown")}`));
        this.order.hidden = tags.length < 2;
        this.none.hidden = tags.length > 0;
        this.body.hidden = !tags.length && !notices.length && !this.hasAttribute("sets");
        this.dataset.shade = isLight(getComputedStyle(this.body).color) ? "dark" : "light";
        this.conflicts.shown();
        this.giveFocus();
        this.dispatchEvent(new CustomEvent("lora-stack-shown", {bubbles: true, detail: {tags: tags.length}}));
    }

    /** Give the focus to where it has gone with a row. */
    giveFocus() {
        if (!this.focusNext) return;
        const [index, name] = this.focusNext;
        this.focusNext = null;
        const row = this.rows[Math.min(index, this.rows.length - 1)];
        if (!row) return;
        const wanted = row[name].disabled ? row[name === "up" ? "down" : "up"] : row[name];
        wanted.focus({preventScroll: true});
    }

    /** Return a notice with its buttons. */
    notice({severity, message, hint, fixes}) {
        const asked = this.prompt.text;
        const buttons = fixes.map(({label, span, text}) => make("button", {
            type: "button", class: "fix",
            onclick: () => {
                if (this.prompt.text === asked) this.prompt.replace(span, text);
                else this.refresh();
            },
        }, label));
        const shown = fixes.length ? "" : hint;
        return make("p", {class: `notice ${severity}`}, message, ...(shown ? [`: ${shown}`] : []), " ", ...buttons);
    }

    /** Change one thing of a tag. Changes wait for each other, and of two of the same thing the later one counts. */
    change(index, field, value) {
        this.edits = this.edits.filter((edit) => edit.index !== index || edit.field !== field);
        this.edits.push({index, field, value});
        if (!this.editing) this.work();
    }

    remove(index) {
        this.focusNext = [index, "remove"];
        this.change(index, "delete", null);
    }

    move(from, to, button) {
        if (from === to || to < 0 || to >= this.count) return;
        if (button) this.focusNext = [to, button];
        this.change(from, "move", String(to));
        this.say(`${this.rows[from].name.textContent}: ${t("place")} ${to + 1}`);
    }

    markTarget(index) {
        this.rows.forEach((row) => row.element.classList.toggle("target", row.index === index && index !== this.dragged));
    }

    async work() {
        this.editing = true;
        while (this.edits.length) {
            const {index, field, value} = this.edits.shift();
            const text = this.prompt.text;
            try {
                const answer = await this.ask("edit", {prompt: text, tag: index, field, value});
                if (text !== this.prompt.text) continue; // somebody has typed since
                if (answer.error) this.complain(index, answer.error);
                else this.prompt.replace(answer.span, answer.text);
            } catch (error) {
                this.fail(error);
            }
            if (OF_THE_WHOLE.includes(field)) this.edits = [];
        }
        this.editing = false;
        const complaint = this.complaint;
        this.complaint = null;
        await this.refresh();
        if (complaint && this.rows[complaint.index]) {
            this.rows[complaint.index].notices.append(this.notice({severity: "error", message: complaint.message, hint: "", fixes: []}));
        }
    }

    /** Keep what is wrong with a change until the rows are shown again, for eyes; for ears at once. */
    complain(index, message) {
        this.complaint = {index, message};
        this.say(message);
    }

    fail(error) {
        console.error("LoRA Runtime:", error);
        const again = make("button", {type: "button", class: "fix", onclick: () => this.refresh()}, t("Try again"));
        const line = make("p", {class: "notice error"}, `${t("The server did not answer")} (${error.message}). `, again);
        this.general.replaceChildren(line);
        this.body.hidden = false;
    }
}

/** Return whether a colour is nearer to white than to black: text of that colour stands on something dark. */
function isLight(colour) {
    const [red, green, blue] = (colour.match(/[\d.]+/g) || [0, 0, 0]).map(Number);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 140;
}

if (!customElements.get("lora-stack")) customElements.define("lora-stack", LoraStack);
