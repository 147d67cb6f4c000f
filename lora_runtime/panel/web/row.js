// One tag of the prompt as a row.
import {called, iconButton, make, put, slideTo, t, whenChanged} from "./dom.js";
import {Opened} from "./opened.js";

const SIDES = [["te", "Text"], ["unet", "Image"]];

export class Row {
    /** `stack` has change(index, field, value), blocks, presets and count. */
    constructor(stack, index) {
        this.stack = stack;
        this.index = index;
        this.tag = null;
        this.linked = null; // until somebody says otherwise: linked where both strengths are the same
        this.open = false;
        this.mute = iconButton("power", t("On"), {class: "mute", role: "switch", onclick: () => this.change("mute", !this.tag.muted)});
        this.picture = make("div", {class: "thumb"});
        this.name = make("span", {class: "name"});
        this.badge = make("span", {class: "badge"});
        this.sides = Object.fromEntries(SIDES.map(([side, label]) => [side, this.side(side, t(label))]));
        this.link = iconButton("link", t("One strength for both"), {class: "link", onclick: () => this.toggleLink()});
        this.up = iconButton("up", t("Move up"), {onclick: () => this.move(-1)});
        this.down = iconButton("down", t("Move down"), {onclick: () => this.move(1)});
        this.remove = iconButton("remove", t("Delete"), {onclick: () => this.stack.remove(this.index)});
        this.more = iconButton("more", t("More"), {class: "more", onclick: () => this.toggle()});
        this.grip = iconButton("grip", t("Drag to another place"), {class: "grip", tabindex: "-1"});
        this.chips = make("div", {class: "chips", role: "group"});
        this.chips.setAttribute("aria-label", t("Trigger words"));
        this.notices = make("div", {class: "notices"});
        this.opened = new Opened(
            stack, (field, value) => this.change(field, value), () => (this.isLinked ? "strength" : "unet"), (name) => this.savePreset(name),
        );
        this.element = make(
            "li", {class: "row"},
            make("div", {class: "line"},
                this.grip, this.mute, this.picture, make("div", {class: "who"}, this.name, this.badge),
                make("div", {class: "strengths"}, this.sides.te.element, this.link, this.sides.unet.element),
                make("div", {class: "tools"}, this.up, this.down, this.more, this.remove)),
            this.chips, this.notices, this.opened.element,
        );
        this.dragging();
    }

    side(side, label) {
        const range = make("input", {type: "range", step: 0.05});
        const field = make("input", {type: "number", step: 0.05, class: "number"});
        range.addEventListener("input", () => this.preview(side, range.value));
        whenChanged(range, (value) => this.setStrength(side, value));
        whenChanged(field, (value) => value === "" || this.setStrength(side, value));
        const element = make("div", {class: `side ${side}`}, make("span", {class: "what", "aria-hidden": "true"}, label), range, field);
        return {range, field, label, element};
    }

    get isLinked() {
        return this.linked === null ? this.tag.te === this.tag.unet : this.linked;
    }

    change(field, value) {
        this.stack.change(this.index, field, value);
    }

    /** Save the block weights under a name, and give the tag that name; return what is wrong, "" for nothing. */
    async savePreset(name) {
        try {
            const answer = await this.stack.ask("save-preset", {prompt: this.stack.prompt.text, tag: this.index, name});
            if (answer.error) return answer.error;
            this.change("preset", answer.saved);
            return "";
        } catch (error) {
            return error.message;
        }
    }

    setStrength(side, value) {
        this.change(this.isLinked ? "strength" : side, value);
    }

    /** Show a strength while its slider is dragged; the prompt gets it when it is let go, as one step to undo. */
    preview(side, value) {
        for (const each of this.isLinked ? ["te", "unet"] : [side]) {
            this.sides[each].field.value = value;
            slideTo(this.sides[each].range, value);
        }
    }

    toggleLink() {
        this.linked = !this.isLinked;
        this.showLink();
        if (this.linked && this.tag.te !== this.tag.unet) this.change("strength", this.tag.unet);
    }

    toggle() {
        this.open = !this.open;
        this.opened.element.hidden = !this.open;
        this.more.setAttribute("aria-expanded", this.open);
        if (this.open) this.opened.show(this.tag, this.stack);
    }

    move(by) {
        this.stack.move(this.index, this.index + by, by < 0 ? "up" : "down");
    }

    /** Show what the tag is now; elements stay, so that focus does too. */
    show(tag) {
        if (!this.tag || this.tag.name !== tag.name) this.linked = null;
        this.tag = tag;
        const name = tag.file ? tag.file.title : tag.name;
        this.name.textContent = name;
        this.name.title = tag.file ? tag.file.place : tag.name;
        this.element.classList.toggle("muted", tag.muted);
        this.element.classList.toggle("lost", !tag.file);
        this.mute.setAttribute("aria-checked", !tag.muted);
        called(this.mute, tag.muted ? `${name}: ${t("off, switch on")}` : `${name}: ${t("on, switch off")}`);
        this.mute.setAttribute("aria-label", `${name}: ${t("on")}`);
        this.showPicture(tag.file);
        this.showBadge(tag.file);
        for (const [side] of SIDES) this.showSide(side, name);
        this.showLink();
        this.up.disabled = this.index === 0;
        this.down.disabled = this.index + 1 >= this.stack.count;
        for (const [button, label] of [[this.up, "Move up"], [this.down, "Move down"], [this.remove, "Delete"], [this.more, "More"]]) {
            called(button, `${t(label)}: ${name}`);
        }
        this.more.setAttribute("aria-expanded", this.open);
        this.showChips(tag.words);
        this.notices.replaceChildren(...tag.notices.map((notice) => this.stack.notice(notice)));
        if (this.open) this.opened.show(tag, this.stack);
    }

    showSide(side, name) {
        const {range, field, label} = this.sides[side];
        const value = Number(this.tag[side]);
        const varies = Number.isNaN(value);
        const [low, high] = this.tag.range;
        if (!range.dataset.dirty) {
            Object.assign(range, {min: low, max: high, disabled: varies});
            slideTo(range, varies ? 1 : value);
        }
        range.setAttribute("aria-label", `${name}: ${label}`);
        field.setAttribute("aria-label", `${name}: ${label}, ${t("number")}`);
        field.disabled = varies;
        field.placeholder = varies ? t("curve") : "";
        put(field, varies ? "" : this.tag[side]);
        field.title = varies ? this.tag[side] : "";
    }

    showLink() {
        this.link.setAttribute("aria-pressed", this.isLinked);
        called(this.link, this.isLinked ? t("One strength for both; click for two") : t("Two strengths; click for one"));
        this.link.setAttribute("aria-label", `${this.name.textContent}: ${t("one strength for both")}`);
    }

    showPicture(file) {
        const source = file ? file.picture : "";
        if (this.picture.dataset.source === source) return;
        this.picture.dataset.source = source;
        this.picture.replaceChildren(...(source ? [make("img", {src: source, alt: "", loading: "lazy"})] : []));
    }

    showBadge(file) {
        const text = file ? file.fit || (file.misfit ? `${t("made for")} ${file.family}` : file.family) : t("no such file");
        this.badge.textContent = text;
        this.badge.classList.toggle("misfit", !file || Boolean(file.fit) || file.misfit);
        this.badge.hidden = !text;
    }

    showChips(words) {
        const key = JSON.stringify(words);
        this.chips.hidden = !words.length;
        if (this.chips.dataset.words === key) return;
        const before = [...this.chips.children].map((chip) => chip.textContent).join("\n");
        this.chips.dataset.words = key;
        if (before !== words.map((each) => each.word).join("\n")) {
            this.chips.replaceChildren(...words.map((_, index) => make("button", {
                type: "button", class: "chip",
                onclick: () => {
                    const {word, present} = this.tag.words[index];
                    this.change(present ? "no-word" : "word", word);
                },
            })));
        }
        words.forEach(({word, present}, index) => {
            const chip = this.chips.children[index];
            chip.textContent = word;
            chip.setAttribute("aria-pressed", present);
            chip.title = present ? t("in the prompt; click to take it out") : t("click to put it into the prompt");
        });
    }

    /** Let the row be dragged by its grip onto another one. */
    dragging() {
        this.grip.addEventListener("pointerdown", () => (this.element.draggable = true));
        this.grip.addEventListener("pointerup", () => (this.element.draggable = false));
        this.element.addEventListener("dragstart", (event) => {
            event.dataTransfer.effectAllowed = "move";
            event.dataTransfer.setData("text/plain", this.tag.name);
            this.stack.dragged = this.index;
        });
        this.element.addEventListener("dragend", () => {
            this.element.draggable = false;
            this.stack.dragged = -1;
            this.stack.markTarget(-1);
        });
        this.element.addEventListener("dragover", (event) => {
            if (this.stack.dragged < 0) return;
            event.preventDefault();
            this.stack.markTarget(this.index);
        });
        this.element.addEventListener("drop", (event) => {
            if (this.stack.dragged < 0) return;
            event.preventDefault();
            this.stack.move(this.stack.dragged, this.index, "");
        });
    }
}
