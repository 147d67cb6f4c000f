// Rows under a name: kept beside the LoRAs, put into the prompt again, and given to others as text.
import {make, t} from "./dom.js";

export class Sets {
    /** `stack` has ask(path, values), prompt and rows. */
    constructor(stack) {
        this.stack = stack;
        this.known = [];
        this.choice = make("select");
        this.choice.setAttribute("aria-label", t("Set"));
        this.name = make("input", {type: "text", placeholder: t("name of a new set"), maxLength: 100});
        this.name.setAttribute("aria-label", t("Name of the set"));
        this.put = this.button(t("Put into the prompt"), () => this.load());
        this.copy = this.button(t("Copy as text"), () => this.share());
        this.drop = this.button(t("Delete"), () => this.remove());
        this.keep = this.button(t("Save the rows"), () => this.save());
        this.said = make("p", {class: "notice", role: "status"});
        this.body = make("div", {class: "sets", hidden: true},
            make("div", {class: "set-line"}, this.choice, this.put, this.copy, this.drop),
            make("div", {class: "set-line"}, this.name, this.keep), this.said);
        this.opener = this.button(t("Sets"), () => this.toggle());
        this.opener.setAttribute("aria-expanded", "false");
        this.choice.addEventListener("change", () => (this.name.value = this.choice.value));
        this.name.addEventListener("keydown", (event) => event.key === "Enter" && this.save());
    }

    button(label, onclick) {
        return make("button", {type: "button", class: "word", onclick}, label);
    }

    async toggle() {
        this.body.hidden = !this.body.hidden;
        this.opener.setAttribute("aria-expanded", String(!this.body.hidden));
        if (!this.body.hidden) await this.ask("sets", null, "");
    }

    get chosen() {
        return this.known.find(({name}) => name === this.choice.value);
    }

    /** Ask, show the sets that there are then, and say what was done, or why it was not; return whether it was. */
    async ask(path, values, done) {
        try {
            const answer = await this.stack.ask(path, values);
            if (answer.error) throw new Error(answer.error);
            this.show(answer.sets);
            this.tell(done, false);
            return true;
        } catch (error) {
            this.tell(error.message, true);
            return false;
        }
    }

    show(sets) {
        const before = this.choice.value;
        this.known = sets;
        this.choice.replaceChildren(...sets.map(({name}) => make("option", {value: name}, name)));
        if (sets.some(({name}) => name === before)) this.choice.value = before;
        for (const element of [this.choice, this.put, this.copy, this.drop]) element.disabled = !sets.length;
        if (!sets.length) this.choice.append(make("option", {value: ""}, t("none yet")));
    }

    tell(text, isWrong) {
        this.said.textContent = text;
        this.said.classList.toggle("error", isWrong);
        this.said.hidden = !text;
    }

    async save() {
        const text = this.stack.rows.map((row) => row.tag.raw).join(" ");
        const name = this.name.value.trim();
        if (await this.ask("save-set", {name, text}, `${t("saved:")} ${name}`)) this.choice.value = name;
    }

    load() {
        const {prompt} = this.stack;
        const text = prompt.text;
        const end = text.length;
        prompt.replace([end, end], (text && !/\s$/.test(text) ? " " : "") + this.chosen.text);
        this.tell(`${t("in the prompt:")} ${this.chosen.name}`, false);
    }

    async share() {
        try {
            await navigator.clipboard.writeText(this.chosen.text);
            this.tell(t("copied"), false);
        } catch (error) {
            // Only pages with https or of this machine may write to the clipboard.
            this.tell(this.chosen.text, false);
        }
    }

    remove() {
        const {name} = this.chosen;
        this.ask("delete-set", {name}, `${t("deleted:")} ${name}`);
    }
}
