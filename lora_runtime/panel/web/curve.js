// A strength over the steps, as points that are moved with the pointer or the arrow keys.
import {draw, iconButton, make, t} from "./dom.js";
import {rounded, valueAt, withKey, withMoved} from "./text.js";

const WIDTH = 300;
const HEIGHT = 120;
const EDGE = 10;

export class CurveEditor {
    /** `changed` gets {unit, keys} when a point was moved, added or taken out. */
    constructor(changed) {
        this.changed = changed;
        this.unit = "fraction";
        this.keys = [[0, 1], [1, 1]];
        this.shape = "linear";
        this.range = [-1, 2];
        this.points = [];
        this.dragged = -1;
        this.grid = draw("path", {class: "grid"});
        this.zero = draw("path", {class: "zero"});
        this.line = draw("path", {class: "curve"});
        this.marks = draw("g", {class: "marks", "aria-hidden": "true"});
        this.dots = draw("g");
        this.plane = draw("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plane", role: "group"}, this.grid, this.zero, this.marks, this.line, this.dots);
        this.plane.setAttribute("aria-label", t("Strength over the steps"));
        this.plane.addEventListener("dblclick", (event) => this.add(this.placeOf(event)[0]));
        this.plane.addEventListener("pointermove", (event) => this.drag(event));
        this.plane.addEventListener("pointerup", () => this.drop());
        this.plane.addEventListener("pointercancel", () => this.cancel());
        this.adder = iconButton("add", t("Add a point"), {onclick: () => this.add(null)});
        this.reading = make("span", {class: "hint", "aria-hidden": "true"});
        this.element = make("div", {class: "curve-editor"}, this.plane, this.adder, this.reading);
    }

    show(unit, keys, shape, range) {
        if (this.dragged >= 0) return;
        [this.unit, this.keys, this.shape, this.range] = [unit, keys, shape || "linear", range];
        this.paint();
    }

    get end() {
        if (this.unit !== "step") return 1;
        return Math.max(20, ...this.keys.map((key) => key[0]));
    }

    toScreen([place, value]) {
        const [low, high] = this.range;
        const x = EDGE + (place / this.end) * (WIDTH - 2 * EDGE);
        return [x, HEIGHT - EDGE - ((value - low) / (high - low)) * (HEIGHT - 2 * EDGE)];
    }

    placeOf(event) {
        const box = this.plane.getBoundingClientRect();
        const [low, high] = this.range;
        const x = ((event.clientX - box.left) / box.width) * WIDTH;
        const y = ((event.clientY - box.top) / box.height) * HEIGHT;
        const place = ((x - EDGE) / (WIDTH - 2 * EDGE)) * this.end;
        const value = low + ((HEIGHT - EDGE - y) / (HEIGHT - 2 * EDGE)) * (high - low);
        return [this.snapped(place), Math.min(high, Math.max(low, Math.round(value * 20) / 20))];
    }

    snapped(place) {
        const inside = Math.min(this.end, Math.max(0, place));
        return this.unit === "step" ? Math.round(inside) : Math.round(inside * 20) / 20;
    }

    paint() {
        const lines = [0, 0.25, 0.5, 0.75, 1].map((share) => {
            const x = EDGE + share * (WIDTH - 2 * EDGE);
            return `M${x} ${EDGE}V${HEIGHT - EDGE}`;
        });
        this.grid.setAttribute("d", lines.join(""));
        const [, zero] = this.toScreen([0, 0]);
        this.zero.setAttribute("d", `M${EDGE} ${zero}H${WIDTH - EDGE}`);
        const whole = Array.from({length: 9}, (_, index) => index - 4).filter((value) => value > this.range[0] && value <= this.range[1]);
        this.marks.replaceChildren(...whole.map((value) => {
            const mark = draw("text", {x: 2, y: this.toScreen([0, value])[1] - 2});
            mark.textContent = value;
            return mark;
        }));
        const places = Array.from({length: 101}, (_, index) => (index / 100) * this.end);
        const all = [...places, ...this.keys.map((key) => key[0])].sort((a, b) => a - b);
        const way = all.map((place) => this.toScreen([place, valueAt(this.keys, this.shape, place)]).join(" "));
        this.line.setAttribute("d", `M${way.join("L")}`);
        while (this.points.length > this.keys.length) this.points.pop().remove();
        while (this.points.length < this.keys.length) this.points.push(this.newPoint(this.points.length));
        this.keys.forEach((key, index) => this.paintPoint(key, index));
    }

    paintPoint([place, value], index) {
        const [x, y] = this.toScreen([place, value]);
        const point = this.points[index];
        point.setAttribute("transform", `translate(${x} ${y})`);
        const at = this.unit === "step" ? `${t("step")} ${place}` : `${Math.round(place * 100)}%`;
        point.setAttribute("aria-label", `${t("Point")} ${index + 1}, ${at}`);
        point.setAttribute("aria-valuenow", value);
        point.setAttribute("aria-valuetext", `${value} ${t("at")} ${at}`);
        if (index === this.dragged || point.matches(":focus")) this.reading.textContent = point.getAttribute("aria-valuetext");
        point.setAttribute("aria-valuemin", this.range[0]);
        point.setAttribute("aria-valuemax", this.range[1]);
    }

    newPoint(index) {
        const point = draw("g", {class: "point", tabindex: "0", role: "slider"}, draw("circle", {r: 14, class: "reach"}), draw("circle", {r: 5}));
        point.addEventListener("pointerdown", (event) => {
            event.preventDefault();
            point.focus({preventScroll: true});
            this.plane.setPointerCapture(event.pointerId);
            [this.dragged, this.before] = [index, this.keys];
        });
        point.addEventListener("keydown", (event) => this.key(event, index));
        point.addEventListener("focus", () => (this.reading.textContent = point.getAttribute("aria-valuetext")));
        this.dots.append(point);
        return point;
    }

    key(event, index) {
        const step = this.unit === "step" ? 1 : event.shiftKey ? 0.01 : 0.05;
        const height = event.shiftKey ? 0.01 : 0.05;
        const ways = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, height], ArrowDown: [0, -height]};
        const [place, value] = this.keys[index];
        if (ways[event.key]) {
            const [along, up] = ways[event.key];
            this.keys = withMoved(this.keys, index, Math.min(this.end, place + along), value + up);
        } else if ((event.key === "Delete" || event.key === "Backspace") && this.keys.length > 1) {
            this.keys = this.keys.filter((_, each) => each !== index);
            const next = this.points[Math.max(0, index - 1)];
            next.focus({preventScroll: true});
        } else {
            return;
        }
        event.preventDefault();
        this.told();
    }

    drag(event) {
        if (this.dragged < 0) return;
        const [place, value] = this.placeOf(event);
        this.keys = withMoved(this.keys, this.dragged, place, value);
        this.paint();
    }

    drop() {
        if (this.dragged < 0) return;
        this.dragged = -1;
        this.told();
    }

    /** Undo what is half moved: the browser has taken the pointer. */
    cancel() {
        if (this.dragged < 0) return;
        [this.dragged, this.keys] = [-1, this.before];
        this.paint();
    }

    add(place) {
        this.keys = withKey(this.keys, this.shape, place);
        this.told();
    }

    told() {
        this.paint();
        this.changed({unit: this.unit, keys: this.keys.map(([place, value]) => [rounded(place), value])});
    }
}
