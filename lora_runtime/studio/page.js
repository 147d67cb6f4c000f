// A click on a card puts its tag into the prompt, where the caret is; a second click takes it out again.
(() => {
  const area = () => document.querySelector("#lr-prompt textarea");

  function replace(box, start, end, text) {
    box.focus();
    box.setSelectionRange(start, end);
    // So that the browser's undo knows it; where that is not possible, the value is set.
    if (!(text ? document.execCommand("insertText", false, text) : document.execCommand("delete"))) {
      box.setRangeText(text, start, end, "end");
      box.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }

  const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

  function toggle(card) {
    const box = area();
    if (!box) return;
    const name = card.dataset.tag.slice("<lora:".length, card.dataset.tag.lastIndexOf(":"));
    const found = new RegExp(`\\s?<lora:${escaped(name)}(:[^>]*)?>`).exec(box.value);
    if (found) {
      replace(box, found.index, found.index + found[0].length, "");
    } else {
      const caret = box.selectionEnd ?? box.value.length;
      const inside = box.value.lastIndexOf("<", caret - 1) > box.value.lastIndexOf(">", caret - 1);
      const at = document.activeElement === box && !inside ? caret : box.value.length;
      const gap = at && !/\s/.test(box.value[at - 1]) ? " " : "";
      replace(box, at, at, gap + card.dataset.tag);
    }
  }

  function mark() {
    const text = area()?.value ?? "";
    for (const card of document.querySelectorAll(".lr-card")) {
      const name = card.dataset.tag.slice(0, card.dataset.tag.lastIndexOf(":"));
      const there = text.includes(`${name}:`) || text.includes(`${name}>`);
      card.setAttribute("aria-pressed", String(there));
    }
  }

  async function star(button) {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    try {
      const answer = await fetch("lora-runtime/star", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ name: button.dataset.name, on }),
      });
      const said = await answer.json();
      if (!answer.ok || said.error) throw new Error(said.error ?? said.detail);
      button.title = "Favourite";
    } catch (error) {
      button.setAttribute("aria-pressed", String(!on));
      button.title = `Not kept: ${error.message}`;
    }
  }

  // A film runs while somebody looks at its card.
  let playing = null;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  function look(event) {
    const film = event.target.closest?.(".lr-cell")?.querySelector("video") ?? null;
    if (film === playing) return;
    playing?.pause();
    playing = film;
    if (!still.matches) film?.play().catch(() => {}); // taken away by now
  }
  document.addEventListener("pointerover", look);
  document.addEventListener("focusin", look);

  document.addEventListener("click", (event) => {
    const starred = event.target.closest?.(".lr-star");
    if (starred) star(starred);
    const card = event.target.closest?.(".lr-card");
    if (card) {
      toggle(card);
      mark();
    }
  });
  document.addEventListener("input", mark);
  // Cards and prompts are also changed by the program.
  document.addEventListener("DOMContentLoaded", () => setInterval(mark, 500));
})();
