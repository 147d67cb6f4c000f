// The prompt's text area: found anew whenever the page has replaced it, watched, and changed so that undo works.
import {typeInto} from "./dom.js";
import {isUnfinished, moved} from "./text.js";

const LOOK_MS = 400;
const TYPING_MS = 180;

export class PromptArea {
    /** Watch the area that `selector()` means; `changed` is called some time after its text is another. */
    constructor(selector, changed) {
        this.selector = selector;
        this.changed = changed;
        this.told = null;
        this.timer = 0;
        this.onBlur = (event) => event.target === this.area && this.look();
        this.onInput = (event) => {
            if (event.target !== this.area) return;
            clearTimeout(this.timer);
            this.timer = setTimeout(() => this.look(), TYPING_MS);
        };
    }

    start() {
        document.addEventListener("input", this.onInput, true);
        document.addEventListener("focusout", this.onBlur, true);
        // Prompts also change without an event: pasted parameters, styles, other extensions.
        this.watch = setInterval(() => document.hidden || this.timer || this.look(), LOOK_MS);
        this.look();
    }

    stop() {
        document.removeEventListener("input", this.onInput, true);
        document.removeEventListener("focusout", this.onBlur, true);
        clearInterval(this.watch);
        clearTimeout(this.timer);
    }

    get area() {
        const selector = this.selector();
        return selector ? document.querySelector(selector) : null;
    }

    get text() {
        return this.area ? this.area.value : "";
    }

    /** Whether somebody is in the middle of a tag; the rows wait until it is one. */
    get isBeingWritten() {
        const area = this.area;
        return Boolean(area) && document.activeElement === area && isUnfinished(area.value, area.selectionStart);
    }

    look() {
        clearTimeout(this.timer);
        this.timer = 0;
        if (this.text === this.told || this.isBeingWritten) return;
        this.told = this.text;
        this.changed();
    }

    /** Put a text into the place of a span, as if it had been typed; cursor, scrolling and focus stay where they are. */
    replace(span, text) {
        const area = this.area;
        if (area.value.slice(...span) === text) return;
        const focused = deepestFocus();
        const {selectionStart, selectionEnd, selectionDirection, scrollTop} = area;
        typeInto(area, span, text);
        area.setSelectionRange(moved(selectionStart, span, text.length), moved(selectionEnd, span, text.length), selectionDirection);
        area.scrollTop = scrollTop;
        if (focused !== area) {
            if (focused && focused.isConnected && focused !== document.body) focused.focus({preventScroll: true});
            else area.blur();
        }
        this.look();
    }
}

function deepestFocus() {
    let focused = document.activeElement;
    while (focused && focused.shadowRoot && focused.shadowRoot.activeElement) focused = focused.shadowRoot.activeElement;
    return focused;
}
