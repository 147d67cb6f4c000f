// Small things for making elements.

/** Return a text in the language of the page, where its program has translations: the WebUI's `localization`. */
export function t(text) {
    const table = globalThis.localization;
    const found = table && typeof table === "object" ? table[text] : "";
    return typeof found === "string" && found ? found : text;
}

/** Return a text with values in the place of {names}. */
export function told(text, values) {
    return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

/** Return an element with properties ("class", "aria-…" and "data-…" as attributes, "on…" as listeners) and children. */
export function make(name, properties = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
        if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
        else if (key === "class" || key === "role" || key === "for" || key === "scope" || key === "tabindex" || key.includes("-")) element.setAttribute(key, value);
        else element[key] = value;
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Return an element of SVG with attributes. */
export function draw(name, attributes = {}, ...children) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
}

const PATHS = {
    power: "M12 4v8M7.5 6.7a7 7 0 1 0 9 0",
    link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
    up: "M6 15l6-6 6 6",
    down: "M6 9l6 6 6-6",
    remove: "M6 6l12 12M18 6L6 18",
    more: "M5 8h14M5 16h14M9 6v4M15 14v4",
    grip: "M9 6h.01M15 6h.01M9 12h.01M15 12h.01M9 18h.01M15 18h.01",
    add: "M12 5v14M5 12h14",
};

/** Return a button with a picture on it; `label` is what it is called. */
export function iconButton(icon, label, properties = {}) {
    const picture = draw("svg", {viewBox: "0 0 24 24", "aria-hidden": "true"}, draw("path", {d: PATHS[icon]}));
    return make("button", {type: "button", "aria-label": label, title: label, ...properties}, picture);
}

/** Set the name of a button, for eyes and ears. */
export function called(button, label) {
    button.title = label;
    button.setAttribute("aria-label", label);
}

/** Set a slider to a value, and colour its way up to there. */
export function slideTo(slider, value) {
    slider.value = value;
    const {min, max} = slider;
    slider.style.setProperty("--fill", `${((slider.value - min) / (max - min)) * 100}%`);
}

/** Set a field's value unless somebody is writing in it. */
export function put(field, value) {
    const active = field.getRootNode().activeElement;
    if (active === field && field.dataset.dirty) return;
    if (field.value !== String(value)) field.value = value;
}

/** Mark a field while it is being changed, and call `done` with its value afterwards. */
export function whenChanged(field, done) {
    field.addEventListener("input", () => (field.dataset.dirty = "1"));
    field.addEventListener("change", () => {
        delete field.dataset.dirty;
        done(field.value);
    });
    field.addEventListener("blur", () => delete field.dataset.dirty);
    return field;
}

/** Give a field of choices its options, and one more for what none of them says. */
export function options(field, wanted, value) {
    const all = wanted.some(([each]) => each === value) ? wanted : [...wanted, [value, value]];
    const key = JSON.stringify(all);
    if (field.dataset.options !== key) {
        field.replaceChildren(...all.map(([each, label]) => make("option", {value: each}, label)));
        field.dataset.options = key;
    }
    field.value = value;
}

/** Put a text into the place of a span of a text area, as if it had been typed; the area has the focus then. */
export function typeInto(area, [start, end], text) {
    const wanted = area.value.slice(0, start) + text + area.value.slice(end);
    area.focus({preventScroll: true});
    area.setSelectionRange(start, end);
    // The only way that leaves the area's own undo whole; all browsers have it, though it is called obsolete.
    if (document.activeElement === area) document.execCommand(text ? "insertText" : "delete", false, text);
    if (area.value !== wanted) {
        area.value = wanted;
        area.dispatchEvent(new Event("input", {bubbles: true}));
    }
}
