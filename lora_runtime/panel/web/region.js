// Where in the picture a tag acts: a box drawn over the picture that was painted last, and a mask of those that are there.
import {make, options, slideTo, t, told, whenChanged} from "./dom.js";
import {boxText, drawnBox, movedBox, resizedBox} from "./text.js";

const EDGES = ["Left", "Top", "Right", "Bottom"];
const NEW = [0.25, 0.25, 0.75, 0.75];
const LEAST = 0.02; // of the picture: what is smaller was a click

export class RegionEditor {
    /** `change` is called with a field and its value; `stack` has picture, pictureSize and ask(path, values). */
    constructor(change, stack) {
        this.change = change;
        this.stack = stack;
        this.box = null;
        this.name = "";
        this.drag = null;
        this.picture = make("img", {class: "picture", alt: "", draggable: false, hidden: true});
        this.shade = make("img", {class: "shade", alt: "", draggable: false, hidden: true});
        this.frame = this.grip("frame", (step) => movedBox(this.box, step));
        this.start = this.grip("corner start", ([x, y]) => resizedBox(this.box, [x, y, 0, 0]));
        this.end = this.grip("corner end", ([x, y]) => resizedBox(this.box, [0, 0, x, y]));
        this.plane = make("div", {class: "region"}, this.picture, this.shade, this.frame, this.start, this.end);
        for (const [name, does] of [["pointerdown", this.press], ["pointermove", this.pull], ["pointerup", this.drop], ["pointercancel", this.cancel]]) {
            this.plane.addEventListener(name, (event) => does.call(this, event));
        }
        this.numbers = EDGES.map((label, index) => whenChanged(
            make("input", {type: "number", min: 0, max: 100, step: 1, class: "number", "aria-label": `${t(label)}, %`}),
            (value) => this.typed(index, value),
        ));
        this.toggle = make("button", {type: "button", class: "word", onclick: () => this.write(this.box ? null : NEW)});
        this.soft = whenChanged(make("input", {type: "range", min: 0, max: 0.5, step: 0.01}), (value) => change("soft", Number(value) ? value : ""));
        this.soft.addEventListener("input", () => slideTo(this.soft, this.soft.value));
        this.mask = make("select");
        this.mask.addEventListener("change", () => change("mask", this.mask.value));
        this.hint = make("p", {class: "hint"}, t("Draw with the pointer, or move the frame and its corners with the arrow keys."));
        this.element = make("details", {class: "where"}, make("summary", {}, t("Part of the picture")),
            make("div", {class: "where-body"}, this.plane,
                make("div", {class: "fields"},
                    make("div", {class: "edges", role: "group", "aria-label": t("Box")},
                        ...this.numbers.map((field, index) => make("label", {}, make("span", {}, t(EDGES[index])), field))),
                    this.toggle,
                    make("label", {}, make("span", {}, t("Soft edge")), this.soft),
                    make("label", {}, make("span", {}, t("Mask")), this.mask),
                    this.hint)));
        this.element.addEventListener("toggle", () => this.element.open && this.opened());
    }

    /** Return something that the arrow keys move; `moved` gives the box after a step. */
    grip(name, moved) {
        const element = make("div", {class: name, tabindex: "0", role: "slider", "aria-valuemin": "0", "aria-valuemax": "100"});
        element.addEventListener("keydown", (event) => {
            const size = event.shiftKey ? 0.01 : 0.05;
            const step = {ArrowLeft: [-size, 0], ArrowRight: [size, 0], ArrowUp: [0, -size], ArrowDown: [0, size]}[event.key];
            if (step) this.write(moved(step));
            else if (event.key === "Delete" || event.key === "Backspace") this.write(null);
            else return;
            event.preventDefault();
        });
        return element;
    }

    show(tag) {
        const region = tag.region || {box: null, mask: "", soft: 0};
        if (tag.region && this.name !== tag.name) this.element.open = true;
        this.name = tag.name;
        if (!this.drag) this.box = region.box;
        if (!this.soft.dataset.dirty) slideTo(this.soft, region.soft);
        this.soft.disabled = !region.box;
        this.masks = this.masks || [];
        this.choose(region.mask);
        this.shade.hidden = !region.mask;
        const address = this.stack.address(`mask?name=${encodeURIComponent(region.mask)}`);
        if (region.mask && this.shade.getAttribute("src") !== address) this.shade.src = address;
        this.paint();
        this.look();
    }

    choose(mask) {
        options(this.mask, [["", this.masks.length ? t("none") : t("none is there")], ...this.masks.map((name) => [name, name])], mask);
    }

    async opened() {
        this.look();
        try {
            const {masks} = await this.stack.ask("masks", null);
            this.masks = masks;
            this.choose(this.mask.value);
        } catch (error) {
            console.error("LoRA Runtime:", error);
        }
    }

    /** Show the picture that is there now; pictures come without an event. */
    look() {
        if (!this.element.open) return;
        const {picture} = this.stack;
        this.picture.hidden = !picture;
        if (picture && this.picture.getAttribute("src") !== picture.src) this.picture.src = picture.src;
        const [width, height] = picture ? [picture.naturalWidth, picture.naturalHeight] : this.stack.pictureSize;
        this.plane.style.aspectRatio = `${width} / ${height}`;
        this.plane.style.setProperty("--across", width / height);
    }

    paint() {
        const box = this.box;
        for (const each of [this.frame, this.start, this.end]) each.hidden = !box;
        this.toggle.textContent = box ? t("Without a box") : t("Add a box");
        this.numbers.forEach((field, index) => {
            field.disabled = !box;
            if (!field.dataset.dirty) field.value = box ? Math.round(box[index] * 100) : "";
        });
        if (!box) return;
        const [left, top, right, bottom] = box.map((each) => `${each * 100}%`);
        Object.assign(this.frame.style, {left, top, width: `${(box[2] - box[0]) * 100}%`, height: `${(box[3] - box[1]) * 100}%`});
        Object.assign(this.start.style, {left, top});
        Object.assign(this.end.style, {left: right, top: bottom});
        const [x0, y0, x1, y1] = box.map((each) => Math.round(each * 100));
        const whole = told(t("{x0} to {x1} % across, {y0} to {y1} % down"), {x0, x1, y0, y1});
        for (const [each, label, now, text] of [
            [this.frame, t("Box"), x0, whole],
            [this.start, t("Upper left corner"), x0, `${x0} %, ${y0} %`],
            [this.end, t("Lower right corner"), x1, `${x1} %, ${y1} %`],
        ]) {
            each.setAttribute("aria-label", label);
            each.setAttribute("aria-valuenow", now);
            each.setAttribute("aria-valuetext", text);
        }
    }

    placeOf(event) {
        const {left, top, width, height} = this.plane.getBoundingClientRect();
        return [(event.clientX - left) / width, (event.clientY - top) / height];
    }

    press(event) {
        if (event.button) return;
        event.preventDefault();
        const place = this.placeOf(event);
        const grip = [this.frame, this.start, this.end].find((each) => each === event.target);
        if (grip) grip.focus({preventScroll: true});
        this.drag = {grip, place, before: this.box};
        this.plane.setPointerCapture(event.pointerId);
    }

    pull(event) {
        if (!this.drag) return;
        const [x, y] = this.placeOf(event);
        const {grip, place, before} = this.drag;
        const by = [x - place[0], y - place[1]];
        if (grip === this.frame) this.box = movedBox(before, by);
        else if (grip === this.start) this.box = resizedBox(before, [...by, 0, 0]);
        else if (grip === this.end) this.box = resizedBox(before, [0, 0, ...by]);
        else if (Math.abs(by[0]) >= LEAST && Math.abs(by[1]) >= LEAST) this.box = drawnBox(place, [x, y]);
        this.paint();
    }

    drop() {
        if (!this.drag) return;
        const {before} = this.drag;
        this.drag = null;
        if (this.box !== before) this.write(this.box);
    }

    /** Undo what is half drawn: the browser has taken the pointer, for scrolling or another finger. */
    cancel() {
        if (!this.drag) return;
        this.box = this.drag.before;
        this.drag = null;
        this.paint();
    }

    typed(index, value) {
        const by = [0, 0, 0, 0];
        by[index] = Number(value) / 100 - this.box[index];
        if (value === "" || !Number.isFinite(by[index])) this.paint(); // as it was
        else this.write(resizedBox(this.box, by));
    }

    /** Show a box, and put it into the tag. */
    write(box) {
        this.box = box;
        this.paint();
        this.change("box", box ? boxText(box) : "");
    }
}
