// The window of a card, in the studio and in the WebUI: a large picture, the words, the file's name and place, and the bin.
// What a server or a file says becomes text, never markup.
import {make, t, typeInto} from "./dom.js";
import {changeOfWord, spanOfWord} from "./words.js";

const STYLE = new URL("card_window.css", import.meta.url).href;

/** Return a button with a text on it. */
export function button(text, onclick, properties = {}) {
    return make("button", {type: "button", class: "lora-runtime-button", onclick, ...properties}, text);
}

/** Return what the host answers to a question at an address; rejects with the reason where there is none. */
export async function answerOf(address, values) {
    const answer = await fetch(address, values === undefined ? {} : {
        method: "POST",
        headers: {"Content-Type": "application/json"},
        body: JSON.stringify(values),
    });
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(typeof found.detail === "string" ? found.detail : `${answer.status} ${answer.statusText}`);
    if (found.error) throw new Error(found.error);
    return found;
}

/** Tell everything on the page that shows files that some have another name or place. */
export function filesChanged() {
    document.dispatchEvent(new CustomEvent("lora-files-changed"));
}

/** Keep Escape for the window that is open, wherever the focus is: a WebUI interrupts a generation at it. */
function keepEscape(event) {
    if (event.key === "Escape") event.stopPropagation();
}

/** Let the film of what somebody looks at begin, and end with that; `filmOf` gives that of an element, or null. */
export function playFilms(filmOf) {
    const still = matchMedia("(prefers-reduced-motion: reduce)");
    let playing = null;
    function look(event) {
        const film = (event.target.closest && filmOf(event.target)) || null;
        if (film === playing) return;
        if (playing) playing.pause();
        playing = film;
        if (playing && !still.matches) playing.play().catch(() => {}); // taken away by now
    }
    document.addEventListener("pointerover", look);
    document.addEventListener("focusin", look);
}

/**
 * The one window of a page of cards. `page` is that page:
 *
 *   home()            the element that the window is put into
 *   area()            the text area of the prompt
 *   details(name)     a promise of what there is to know of a file
 *   bin()             a promise of what was thrown away
 *   change(values)    a promise of what was done with a file, once the cards show it
 *   changed(answer)   called when the window has closed after that
 *   tell(text)        says what is wrong
 *   heir(opener)      what stands in the place of an element that is gone, which had the focus when the window opened
 */
export class CardWindow {
    constructor(page) {
        this.page = page;
        this.box = null;
        this.opener = null;
    }

    /** Show a window with a heading; it closes by its button, by Escape and by a click beside it. */
    show(heading, opener, ...children) {
        this.close();
        const title = make("h3", {id: "lora_runtime_window_title"}, heading);
        const close = button(t("Close"), () => this.close());
        const inner = make("div", {class: "lora-runtime-window-inner"}, make("header", {}, title, close), ...children);
        const box = make("dialog", {class: "lora-runtime-window", "aria-labelledby": title.id}, inner);
        box.addEventListener("click", (event) => event.target === box && this.close());
        box.addEventListener("cancel", (event) => {
            event.preventDefault();
            this.close();
        });
        this.page.home().append(box);
        this.box = box;
        this.opener = opener;
        document.addEventListener("keydown", keepEscape, true);
        box.showModal();
        close.focus();
    }

    /** Close the window, and give the focus back. */
    close() {
        const {box, opener} = this;
        if (!box) return;
        this.box = this.opener = null;
        document.removeEventListener("keydown", keepEscape, true);
        box.remove();
        const heir = opener && (opener.isConnected ? opener : this.page.heir(opener));
        if (heir) heir.focus();
    }

    /** Show all there is to know of a file. */
    async details(name, opener) {
        let found;
        try {
            found = await this.page.details(name);
        } catch (error) {
            this.page.tell(error.message);
            return;
        }
        const about = make("dl");
        const tell = (label, value) => value && about.append(make("dt", {}, t(label)), make("dd", {}, value));
        tell("Place", found.place);
        tell("Made for", found.family);
        tell("Fits", found.coverage);
        tell("Used last", found.used ? new Date(found.used * 1000).toLocaleString() : t("never"));
        if (found.page) tell("Model page", make("a", {href: found.page, target: "_blank", rel: "noopener noreferrer"}, found.page));
        const star = make("button", {
            type: "button", class: "lora-runtime-star lora-runtime-button", "aria-pressed": String(found.favourite),
        }, t("Favourite"));
        this.show(
            found.title || found.name, opener,
            large(found),
            make("div", {"data-name": found.name}, star),
            about,
            found.words.length ? this.words(found.words) : null,
            found.description ? make("p", {class: "lora-runtime-description"}, found.description) : null,
            found.allowed ? this.file(found) : null,
        );
    }

    /** Return a button for each word, which puts it into the prompt or takes it out. */
    words(words) {
        const area = this.page.area();
        const list = make("div", {class: "lora-runtime-words", role: "group", "aria-label": t("Words it was trained with")});
        const isThere = (word) => String(Boolean(spanOfWord(area.value, word)));
        for (const word of words) {
            const chip = button(word, () => {
                const {span, text} = changeOfWord(area.value, word);
                this.write(area, span, text, chip);
                chip.setAttribute("aria-pressed", isThere(word));
            }, {"aria-pressed": isThere(word), title: t("Put it into the prompt, or take it out")});
            list.append(chip);
        }
        return make("section", {}, make("h4", {}, t("Words it was trained with")), list);
    }

    /** Put a text into the place of a span of a prompt as if it had been typed; `chip`, in the window, keeps the focus. */
    write(area, span, text, chip) {
        const {box} = this;
        const {scrollTop} = area;
        const scrolled = [box, box.firstElementChild].map((each) => [each, each.scrollTop]);
        box.close(); // below a window that is open nothing takes the focus
        typeInto(area, span, text);
        area.scrollTop = scrollTop;
        box.showModal();
        chip.focus({preventScroll: true});
        for (const [each, top] of scrolled) each.scrollTop = top;
    }

    /** Return the part of the window in which the file gets another name or place. */
    file(found) {
        const said = make("p", {class: "lora-runtime-said-error", role: "alert"});
        const ask = (values) => this.attempt({name: found.name, ...values}, said);
        const name = make("input", {type: "text", value: found.stem, "aria-label": t("Name of the file"), spellcheck: false});
        const folder = make("select", {"aria-label": t("Folder")}, ...found.folders.map((each) => make(
            "option", {value: each, selected: each === found.folder}, each || t("(the outermost)"))));
        const form = (label, act, field) => make("form", {onsubmit: (event) => {
            event.preventDefault();
            ask(act());
        }}, field, make("button", {type: "submit", class: "lora-runtime-button"}, label));
        return make(
            "section", {},
            make("h4", {}, t("File")),
            form(t("Rename"), () => ({action: "rename", to: name.value.trim()}), name),
            form(t("Move"), () => ({action: "move", to: folder.value}), folder),
            button(t("Put into the bin"), () => ask({action: "bin"})),
            make("p", {class: "lora-runtime-hint"}, t("What lies beside it under its name goes along: pictures, notes, side-cars.")),
            said,
        );
    }

    /** Show what was thrown away. */
    async bin(opener) {
        let found;
        try {
            found = await this.page.bin();
        } catch (error) {
            this.page.tell(error.message);
            return;
        }
        const said = make("p", {class: "lora-runtime-said-error", role: "alert"});
        const rows = found.bin.map((thing) => {
            const when = new Date(thing.when * 1000).toLocaleString();
            const back = button(t("Put back"), () => this.attempt({action: "restore", token: thing.token}, said), {
                disabled: !found.allowed, "aria-label": `${t("Put back")}: ${thing.place}`,
            });
            return make("li", {}, make("span", {}, thing.place), make("small", {}, when), back);
        });
        const hint = t("Nothing is deleted. What you want no more can be deleted in the folder .lora-bin, beside the LoRAs.");
        this.show(
            t("Bin"), opener,
            rows.length ? make("ul", {class: "lora-runtime-bin"}, ...rows) : make("p", {}, t("The bin is empty.")),
            make("p", {class: "lora-runtime-hint"}, hint),
            said,
        );
    }

    /** Change a file from the window: it closes where that could be done, and otherwise says why in `said`. */
    async attempt(values, said) {
        const {box} = this;
        let answer;
        said.textContent = "";
        try {
            answer = await this.page.change(values);
        } catch (error) {
            said.textContent = error.message;
            return;
        }
        if (this.box === box) this.close(); // or another one has been opened meanwhile
        this.page.changed(answer);
    }
}

/** Return the film of a file, or its picture at full size; null where it has none. */
function large(found) {
    if (found.film) {
        const video = make("video", {class: "lora-runtime-large", src: found.film, controls: true, loop: true, muted: true});
        if (found.preview) video.poster = found.preview;
        video.setAttribute("aria-label", t("Film"));
        return video;
    }
    return found.preview ? make("img", {class: "lora-runtime-large", src: found.preview, alt: ""}) : null;
}

document.head.append(make("link", {rel: "stylesheet", href: STYLE}));
