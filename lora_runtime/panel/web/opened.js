// What a row has when it is opened: when, where and for which pass its tag acts.
import {CurveEditor} from "./curve.js";
import {make, options, put, slideTo, t, whenChanged} from "./dom.js";
import {RegionEditor} from "./region.js";
import {SHAPE_NAMES} from "./text.js";

const EDITABLE = ["fraction", "step", "share"];

export class Opened {
    /** `change` is called with a field and its value, `save` with a preset's name; `field()` says which strength the curve is of. */
    constructor(stack, change, field, save) {
        this.change = change;
        this.save = save;
        this.region = new RegionEditor(change, stack);
        this.editor = new CurveEditor((keys) => change(field(), keys));
        this.strength = this.text(t("Strength or keyframes"), (value) => change(field(), value), "0.2@0,1@0.5");
        this.shape = this.choice(t("From point to point"), (value) => change("curve", value === "linear" ? "" : value));
        for (const name of SHAPE_NAMES) this.shape.append(make("option", {value: name}, name));
        this.hires = this.text(t("Hires strength"), (value) => change("hr", value), t("as above"));
        this.start = this.text(t("Start"), (value) => change("start", value), "5, 25%");
        this.stop = this.text(t("Stop"), (value) => change("stop", value), "10, 0.5");
        this.module = this.choice(t("Model"), (value) => change("module", value));
        this.preset = this.choice(t("Block weights"), (value) => change("preset", value));
        this.blocks = make("div", {class: "blocks"});
        this.name = make("input", {type: "text", autocomplete: "off", spellcheck: false, maxLength: 60, placeholder: t("name of a new preset")});
        this.name.setAttribute("aria-label", t("Name of the preset"));
        this.name.addEventListener("keydown", (event) => event.key === "Enter" && this.keep());
        this.said = make("p", {class: "notice", role: "status", hidden: true});
        this.keeping = make("div", {class: "set-line"}, this.name,
            make("button", {type: "button", class: "word", onclick: () => this.keep()}, t("Save the block weights")));
        this.sliders = new Map();
        this.others = make("p", {class: "others"});
        this.curveNote = make("p", {class: "others"}, t("Positions in other units are edited as text."));
        this.element = make(
            "div", {class: "opened", hidden: true},
            make("div", {class: "over-steps"}, this.editor.element, this.curveNote,
                make("div", {class: "fields"}, this.label(this.strength), this.label(this.shape))),
            make("div", {class: "fields"}, ...[this.hires, this.start, this.stop, this.module, this.preset].map((each) => this.label(each))),
            this.blocks,
            this.keeping,
            this.said,
            this.region.element,
            this.others,
        );
    }

    /** Save the block weights of the row, and say what came of it. */
    async keep() {
        const name = this.name.value.trim();
        const error = await this.save(name);
        this.said.textContent = error || `${t("saved:")} ${name}`;
        this.said.classList.toggle("error", Boolean(error));
        this.said.hidden = false;
        if (!error) this.name.value = "";
    }

    text(label, done, hint) {
        const field = make("input", {type: "text", autocomplete: "off", spellcheck: false, placeholder: hint});
        field.dataset.label = label;
        return whenChanged(field, done);
    }

    choice(label, done) {
        const field = make("select");
        field.dataset.label = label;
        field.addEventListener("change", () => done(field.value));
        return field;
    }

    label(field) {
        return make("label", {}, make("span", {}, field.dataset.label), field);
    }

    show(tag, stack) {
        const curve = tag.curves.unet;
        const value = Number(tag.unet);
        const editable = curve ? EDITABLE.includes(curve.unit) : !Number.isNaN(value);
        this.editor.element.hidden = !editable;
        this.curveNote.hidden = editable;
        if (editable) {
            const keys = curve ? curve.keys : [[0, value], [1, value]];
            const values = keys.map((key) => key[1]);
            const range = [Math.min(tag.range[0], ...values), Math.max(tag.range[1], ...values)];
            this.editor.show(curve ? curve.unit : "fraction", keys, tag.fields.curve, range);
        }
        put(this.strength, tag.unet);
        this.shape.value = tag.fields.curve || "linear";
        this.shape.disabled = !curve;
        put(this.hires, tag.fields.hr);
        put(this.start, tag.fields.start);
        put(this.stop, tag.fields.stop);
        options(this.module, [["", t("both, or the only one")], ["high", t("high noise")], ["low", t("low noise")]], tag.fields.module);
        options(this.preset, [["", stack.presets.length ? t("single blocks") : ""], ...stack.presets.map((name) => [name, name])], tag.preset);
        this.showBlocks(tag, stack.blocks);
        this.keeping.hidden = !stack.blocks.length;
        this.region.show(tag);
        this.others.textContent = tag.others.length ? `${t("As written:")} ${tag.others.join("  ")}` : "";
        this.others.hidden = !tag.others.length;
    }

    showBlocks(tag, names) {
        if ([...this.sliders.keys()].join() !== names.join()) {
            this.sliders = new Map(names.map((name) => [name, this.blockSlider(name)]));
            this.blocks.replaceChildren(...[...this.sliders.values()].map((each) => each.element));
        }
        this.blocks.hidden = !names.length;
        for (const [name, {slider, output}] of this.sliders) {
            const ratio = tag.ratios[name];
            output.textContent = ratio;
            if (slider.dataset.dirty) continue;
            slider.disabled = Number.isNaN(Number(ratio));
            slider.min = Math.min(0, Number(ratio) || 0);
            slider.max = Math.max(1.5, Number(ratio) || 0);
            slideTo(slider, slider.disabled ? 1 : ratio);
        }
    }

    blockSlider(name) {
        const output = make("output");
        const slider = make("input", {type: "range", min: 0, max: 1.5, step: 0.05});
        slider.addEventListener("input", () => {
            output.textContent = slider.value;
            slideTo(slider, slider.value);
        });
        whenChanged(slider, (value) => this.change(`block:${name}`, value));
        return {slider, output, element: make("label", {class: "block"}, make("span", {}, name), slider, output)};
    }
}
