/*
 * The stack panel in the WebUI: its modules are fetched once the page is there, and a <lora-stack> is put below each prompt. What
 * it does is in lora_runtime/panel/web/.
 */
(function() {
    "use strict";

    const LOOK_MS = 500;
    const TABS = ["txt2img", "img2img"];
    let state = "none"; // then "loading", "there"

    /** Fetch the panel's modules, whose address changes with their content. */
    async function load() {
        const answer = await fetch("./lora-runtime/web");
        if (answer.status === 404) { // a program in which the extension has no page
            clearInterval(timer);
            return;
        }
        if (!answer.ok) throw new Error(`web: ${answer.status} ${answer.statusText}`);
        const {hash} = await answer.json();
        await import(new URL(`./lora-runtime/web/${hash}/stack.js`, document.baseURI).href);
        state = "there";
    }

    /** Put a panel below a tab's prompts, where the page has them and there is none yet. */
    function mount(tab) {
        const prompt = document.getElementById(`${tab}_prompt`);
        if (!prompt || document.getElementById(`${tab}_lora_stack`)) return;
        const stack = document.createElement("lora-stack");
        stack.id = `${tab}_lora_stack`;
        stack.setAttribute("for", `#${tab}_prompt textarea`);
        stack.setAttribute("sets", "");
        stack.setAttribute("conflicts", "");
        stack.setAttribute("picture", `#${tab}_gallery img`);
        stack.setAttribute("picture-width", `#${tab}_width input`);
        stack.setAttribute("picture-height", `#${tab}_height input`);
        const both = document.getElementById(`${tab}_prompt_container`);
        if (both) both.append(stack);
        else (document.getElementById(`${tab}_neg_prompt`) || prompt).after(stack);
    }

    // The page replaces what it has when the UI is reloaded.
    const timer = setInterval(() => {
        if (document.hidden || !TABS.some((tab) => document.getElementById(`${tab}_prompt`))) return;
        if (state === "there") {
            TABS.forEach(mount);
        } else if (state === "none") {
            state = "loading";
            load().catch((error) => {
                clearInterval(timer);
                console.error("LoRA Runtime:", error);
            });
        }
    }, LOOK_MS);
})();
