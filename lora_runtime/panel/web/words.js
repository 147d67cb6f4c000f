// Words of a prompt that come in and go out by a button; from text to text, so that node can run it.

/** Return where a word stands in a prompt, alone between commas, tags and ends of lines; null where it does not. */
export function spanOfWord(prompt, word) {
    let end = 0;
    for (const part of prompt.split(/(<[^<>]*>|[,\n])/)) {
        const start = end + part.length - part.replace(/^\s+/, "").length;
        end += part.length;
        if (part.trim().toLowerCase() === word.toLowerCase()) return [start, start + part.trim().length];
    }
    return null;
}

/** Return the span of a prompt that is replaced, and by what, where a word comes in or goes out; the rest stays. */
export function changeOfWord(prompt, word) {
    const span = spanOfWord(prompt, word);
    if (!span) {
        const end = prompt.replace(/[\s,]+$/, "").length;
        return {span: [end, end], text: end ? `, ${word}` : word};
    }
    // A comma goes along, that before it or at the start that behind; in the middle of a line one stays.
    const before = /,[ \t]*$/.exec(prompt.slice(0, span[0]));
    const after = /^[ \t]*(?:,[ \t]*)?/.exec(prompt.slice(span[1]))[0];
    if (before) return {span: [before.index, span[1]], text: ""};
    return {span: [span[0], span[1] + (after.includes(",") ? after.length : 0)], text: ""};
}

const TAG = /<(?:lora|lyco|loractl):([^:>]+)/gi;

/** Return {name, span} of each LoRA tag of a prompt: what it calls its file, and where that stands. */
export function namesInTags(prompt) {
    return [...prompt.matchAll(TAG)].map((found) => {
        const end = found.index + found[0].length;
        const start = end - found[1].length;
        return {name: found[1].trim(), span: [start, end]};
    });
}

/**
 * Return the span of a prompt that is replaced, and by what, where the tag of a file comes in, at a place of the prompt
 * or at its end, or goes out.
 */
export function changeOfTag(prompt, name, place = prompt.length) {
    const there = namesInTags(prompt).find((tag) => tag.name === name);
    if (there) {
        const open = prompt.lastIndexOf("<", there.span[0]);
        const close = prompt.indexOf(">", there.span[1]);
        const start = /\s/.test(prompt.charAt(open - 1)) ? open - 1 : open;
        return {span: [start, close < 0 ? prompt.length : close + 1], text: ""};
    }
    const within = prompt.lastIndexOf("<", place - 1) > prompt.lastIndexOf(">", place - 1);
    const at = within ? prompt.length : place;
    const gap = at && !/\s/.test(prompt[at - 1]) ? " " : "";
    return {span: [at, at], text: `${gap}<lora:${name}:1>`};
}

/** Return the prompt with another name in the tags of a file. */
export function withRenamed(prompt, before, now) {
    return namesInTags(prompt).filter((tag) => tag.name === before).reduceRight(
        (text, {span}) => text.slice(0, span[0]) + now + text.slice(span[1]), prompt);
}
