// Names, fields and presets at the cursor, while a tag is being written.
import {make, t} from "./dom.js";
import {isInTag} from "./text.js";

const TYPING_MS = 120;

export class Completion {
    /** `stack` has prompt, ask(path, values) and say(text); the list lies in `place`. */
    constructor(stack, place) {
        this.stack = stack;
        this.items = [];
        this.chosen = 0;
        this.span = [0, 0];
        this.asked = 0;
        this.timer = 0;
        this.own = false; // whether the text changes because of us
        this.list = make("ul", {class: "completion", role: "listbox", hidden: true});
        this.list.setAttribute("aria-label", t("Suggestions"));
        place.append(this.list);
        this.listeners = [
            ["input", (event) => this.typed(event)],
            ["keydown", (event) => this.key(event)],
            ["focusout", (event) => event.target === this.area && !this.own && this.close()],
            // The list stays where it is on the screen; a text area that scrolls because of what is typed is another matter.
            ["scroll", (event) => event.target !== this.area && !this.list.hidden && this.close()],
        ];
    }

    start() {
        for (const [name, listener] of this.listeners) document.addEventListener(name, listener, true);
    }

    stop() {
        for (const [name, listener] of this.listeners) document.removeEventListener(name, listener, true);
        this.close();
    }

    get area() {
        return this.stack.prompt.area;
    }

    /** Return whether somebody else completes tags here: a1111-sd-webui-tagcomplete marks the areas that it has. */
    get standsBack() {
        return this.area.classList.contains("autocomplete");
    }

    typed(event) {
        if (event.target !== this.area || this.own) return;
        clearTimeout(this.timer);
        const {value, selectionStart, selectionEnd} = this.area;
        if (selectionStart !== selectionEnd || this.standsBack || !isInTag(value, selectionStart)) {
            this.close();
            return;
        }
        this.timer = setTimeout(() => this.look(), TYPING_MS);
    }

    async look() {
        const number = ++this.asked;
        const {value, selectionStart} = this.area;
        try {
            const answer = await this.stack.ask("complete", {prompt: value, cursor: selectionStart});
            if (number !== this.asked || !this.area || this.area.value !== value) return;
            this.span = answer.span;
            this.show(answer.items);
        } catch (error) {
            console.error("LoRA Runtime:", error);
            this.close();
        }
    }

    show(items) {
        this.items = items;
        this.chosen = 0;
        if (!items.length) {
            this.close();
            return;
        }
        this.list.replaceChildren(...items.map((item, index) => this.option(item, index)));
        this.list.hidden = false;
        this.mark(0);
        const {left, top} = cursorPlace(this.area, this.span[0]);
        const width = Math.min(360, window.innerWidth - 16);
        this.list.style.width = `${width}px`;
        this.list.style.left = `${Math.max(8, Math.min(left, window.innerWidth - width - 8))}px`;
        this.list.style.top = `${top}px`;
        this.stack.say(`${items.length} ${t("suggestions")}: ${items[0].label}`);
    }

    option(item, index) {
        const picture = make("span", {class: "thumb"}, ...(item.picture ? [make("img", {src: item.picture, alt: "", loading: "lazy"})] : []));
        const option = make("li", {role: "option", class: "option"}, picture,
            make("span", {class: "name"}, item.label), make("span", {class: "detail"}, item.detail));
        option.addEventListener("pointerdown", (event) => {
            event.preventDefault(); // the area keeps the focus
            this.take(index);
        });
        return option;
    }

    mark(index) {
        this.chosen = index;
        [...this.list.children].forEach((option, each) => option.setAttribute("aria-selected", each === index));
        this.list.children[index].scrollIntoView({block: "nearest"});
    }

    key(event) {
        if (event.target !== this.area || this.list.hidden || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
        const count = this.items.length;
        const steps = {ArrowDown: 1, ArrowUp: count - 1};
        if (steps[event.key]) {
            this.mark((this.chosen + steps[event.key]) % count);
            this.stack.say(this.items[this.chosen].label);
        } else if (event.key === "Enter" || event.key === "Tab") {
            this.take(this.chosen);
        } else if (event.key === "Escape") {
            this.close();
        } else {
            if (event.key === "ArrowLeft" || event.key === "ArrowRight" || event.key === "Home" || event.key === "End") this.close();
            return;
        }
        event.preventDefault();
        event.stopPropagation();
    }

    take(index) {
        const {text} = this.items[index];
        const end = this.span[0] + text.length;
        const span = this.span;
        this.close();
        this.own = true;
        this.stack.prompt.replace(span, text);
        this.own = false;
        this.area.setSelectionRange(end, end);
        if (text.endsWith("=")) this.look();
    }

    close() {
        clearTimeout(this.timer);
        this.asked++;
        this.list.hidden = true;
    }
}

/** Return where on the screen a place of the area's text is: below its line. */
function cursorPlace(area, place) {
    const style = getComputedStyle(area);
    const mirror = make("div", {"aria-hidden": "true"});
    for (const name of ["fontFamily", "fontSize", "fontWeight", "letterSpacing", "lineHeight", "padding", "border", "boxSizing", "textIndent"]) {
        mirror.style[name] = style[name];
    }
    Object.assign(mirror.style, {
        position: "absolute", top: "0", left: "-9999px", visibility: "hidden", whiteSpace: "pre-wrap", overflowWrap: "break-word",
        width: `${area.clientWidth}px`,
    });
    const mark = make("span", {}, "\u200b");
    mirror.append(area.value.slice(0, place), mark);
    document.body.append(mirror);
    const box = area.getBoundingClientRect();
    const left = box.left + mark.offsetLeft - area.scrollLeft;
    const below = box.top + mark.offsetTop + mark.offsetHeight - area.scrollTop;
    mirror.remove();
    return {left, top: Math.min(box.bottom, Math.max(box.top, below)) + 2};
}
