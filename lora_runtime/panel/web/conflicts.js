// What the LoRAs of a prompt do to each other: a line for each two, and below it their heat map.
import {make, t, told} from "./dom.js";

const MANY = 0.2; // of the common layers: what a person may see in the picture

export class Conflicts {
    /** `stack` has ask(path, values) and rows; files are read only when somebody asks. */
    constructor(stack) {
        this.stack = stack;
        this.about = "";
        this.opener = make("button", {type: "button", class: "word", onclick: () => this.look()}, t("Conflicts"));
        this.opener.title = t("Look whether two of them pull against each other; reads the files");
        this.body = make("div", {class: "conflicts", role: "status", hidden: true});
    }

    /** Return the tags that are on: of these it is asked. */
    get wanted() {
        return this.stack.rows.filter(({tag}) => !tag.muted && tag.file).map(({tag}) => tag.raw);
    }

    /** Forget what was said of other tags. */
    shown() {
        const wanted = this.wanted;
        this.opener.hidden = !this.stack.hasAttribute("conflicts") || wanted.length < 2;
        if (wanted.join(" ") !== this.about) {
            this.about = "";
            this.body.hidden = true;
        }
    }

    async look() {
        const about = this.wanted.join(" ");
        if (this.opener.ariaBusy === "true") return;
        this.about = about;
        this.opener.ariaBusy = "true";
        this.say(make("p", {class: "notice"}, t("Reading the files …")));
        try {
            const answer = await this.stack.ask("conflicts", {prompt: about});
            if (answer.error) throw new Error(answer.error);
            if (this.about === about) this.show(answer);
        } catch (error) {
            if (this.about === about) this.say(make("p", {class: "notice error"}, error.message));
        } finally {
            this.opener.ariaBusy = "false";
        }
    }

    say(...parts) {
        this.body.hidden = false;
        this.body.replaceChildren(...parts);
    }

    show({pairs, map, said}) {
        const lines = pairs.map((pair) => make("p", {class: pair.fighting > pair.layers * MANY ? "notice warning" : "notice"}, sentence(pair)));
        const more = said.map((text) => make("p", {class: "notice hint"}, text));
        this.say(...lines, ...more, ...(map ? [make("details", {}, make("summary", {}, t("Heat map")), heatMap(map))] : []));
    }
}

/** Return what there is to say of two files. */
export function sentence({names: [one, two], layers, fighting, cosine}) {
    if (!layers) return told(t("{one} and {two} change no layer in common"), {one, two});
    if (cosine === null) return told(t("{one} or {two} makes no change in their {layers} common layers"), {one, two, layers});
    const known = {one, two, layers, share: `${Math.round((fighting / layers) * 100)} %`, cosine: cosine.toFixed(2).replace("-", "−")};
    if (!fighting) return told(t("{one} and {two} pull against each other in none of {layers} common layers (cosine {cosine})"), known);
    return told(t("{one} and {two} pull {share} of the common layers against each other (cosine {cosine})"), known);
}

/** Return a table with coloured cells: how much of each file is in a block, and for each two whether it pulls the same way. */
function heatMap({columns, rows}) {
    const heads = columns.map((column) => make("th", {scope: "col"}, Array.isArray(column) ? column.join(" / ") : column));
    const cell = ({value, text}, column) => {
        const made = make("td", {}, text);
        if (value === null) return made;
        made.classList.add(Array.isArray(column) ? (value < 0 ? "against" : "along") : "much");
        made.style.setProperty("--heat", `${Math.round(Math.abs(value) * 45)}%`);
        return made;
    };
    const line = ({block, cells}) => make("tr", {}, make("th", {scope: "row"}, block), ...cells.map((each, index) => cell(each, columns[index])));
    const table = make("table", {class: "heat"}, make("thead", {}, make("tr", {}, make("td"), ...heads)), make("tbody", {}, ...rows.map(line)));
    const legend = t("How much each changes by block (its norm), and the cosine of each two: below 0 they pull against each other.");
    return make("div", {}, make("p", {class: "hint"}, legend),
        make("div", {class: "scroll", tabindex: "0", role: "group", "aria-label": t("Heat map")}, table));
}
