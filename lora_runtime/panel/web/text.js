// From texts and numbers to texts and numbers: nothing here knows the page, so that node can run it.

/** Return where a place in a text is after `span` became `length` units long. */
export function moved(place, [start, end], length) {
    if (place <= start) return place;
    return place >= end ? place + length - (end - start) : Math.min(place, start + length);
}

/** Return whether the cursor is in a LoRA tag that is being written. */
export function isInTag(text, cursor) {
    return /<(?:lora|lyco|loractl):[^<>\n]*$/i.test(text.slice(Math.max(0, cursor - 320), cursor));
}

/** Return whether the cursor is in a LoRA tag whose ">" is still to come: nothing there is a mistake yet. */
export function isUnfinished(text, cursor) {
    return isInTag(text, cursor) && !/^[^<>\n]*>/.test(text.slice(cursor));
}

const SHAPES = {
    linear: (x) => x,
    hold: () => 0,
    ease: (x) => x * x * (3 - 2 * x),
    "ease-in": (x) => x * x,
    "ease-out": (x) => x * (2 - x),
};
export const SHAPE_NAMES = Object.keys(SHAPES);

/** Return the value of keyframes [[place, value], …] at a place; before the first and after the last these count. */
export function valueAt(keys, shape, place) {
    let value = keys[0][1];
    for (let index = 0; index + 1 < keys.length; index++) {
        const [start, before] = keys[index];
        const [end, after] = keys[index + 1];
        if (place >= end) value = after;
        else if (place > start) return before + (after - before) * (SHAPES[shape] || SHAPES.linear)((place - start) / (end - start));
    }
    return value;
}

/** Return keyframes with one more, in the middle of the longest way between two, at the height that is there. */
export function withKey(keys, shape, place = null) {
    if (place === null) {
        let widest = 0;
        place = keys[0][0];
        for (let index = 0; index + 1 < keys.length; index++) {
            const width = keys[index + 1][0] - keys[index][0];
            if (width > widest) [widest, place] = [width, rounded(keys[index][0] + width / 2)];
        }
    }
    const added = [place, rounded(valueAt(keys, shape, place))];
    return [...keys, added].sort((a, b) => a[0] - b[0]);
}

/** Return the keyframes with one at another place and value, kept between its neighbours. */
export function withMoved(keys, index, place, value) {
    const low = index > 0 ? keys[index - 1][0] : 0;
    const high = index + 1 < keys.length ? keys[index + 1][0] : Infinity;
    const made = [rounded(Math.min(high, Math.max(low, place))), rounded(value)];
    return keys.map((key, each) => (each === index ? made : key));
}

export function rounded(value) {
    return Math.round(value * 100) / 100;
}

/** Return a box [left, top, right, bottom] of fractions as a tag has it. */
export function boxText(box) {
    return box.map((each) => String(rounded(each))).join(",");
}

const LEAST_SIDE = 0.01;
const inside = (value, low = 0, high = 1) => rounded(Math.min(high, Math.max(low, value)));

/** Return the box between two places, wherever they lie to each other. */
export function drawnBox([x0, y0], [x1, y1]) {
    return resizedBox([Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)], [0, 0, 0, 0]);
}

/** Return a box that was moved, as far as the picture goes. */
export function movedBox([x0, y0, x1, y1], [across, down]) {
    const x = Math.min(1 - x1, Math.max(-x0, across));
    const y = Math.min(1 - y1, Math.max(-y0, down));
    return [x0 + x, y0 + y, x1 + x, y1 + y].map((each) => inside(each));
}

/** Return a box whose edges were moved, none of them beyond the picture or the edge opposite. */
export function resizedBox(box, by) {
    const [x0, y0, x1, y1] = box.map((edge, index) => edge + by[index]);
    const [left, top] = [[x0, box[2]], [y0, box[3]]].map(([edge, other]) => inside(edge, 0, Math.max(0, Math.min(other, 1) - LEAST_SIDE)));
    return [left, top, inside(x1, left + LEAST_SIDE), inside(y1, top + LEAST_SIDE)];
}
