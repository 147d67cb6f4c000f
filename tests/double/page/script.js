// The program's own scripts, as much of them as an extension's script meets: written from what they do, without their code.
"use strict";

var opts = {}; // filled in by the page, as the program does from its settings
var extraNetworksApplyFilter = {}; // of a page, by its id: hides the cards without the text that is searched
var extraNetworksApplySort = {};

// Since gradio 3.10 without a shadow root; the program then still gives the element, with the document's search by id.
function gradioApp() {
    const element = document.querySelector("gradio-app") || document;
    if (element !== document) element.getElementById = (id) => document.getElementById(id);
    return element.shadowRoot || element;
}

/** Tell gradio of a text that a script has put into a field. */
function updateInput(field) {
    const event = new Event("input", {bubbles: true});
    Object.defineProperty(event, "target", {value: field});
    field.dispatchEvent(event);
}

function closePopup() {}

/** What the icon of Refresh does: it clicks the hidden button that gradio listens to. */
function extraNetworksControlRefreshOnClick(event, tab, page) {
    gradioApp().getElementById(`${tab}_${page}_extra_refresh_internal`).dispatchEvent(new Event("click"));
}

/** What happens once the page is new, after a refresh too. */
function applyExtraNetworkFilter(page) {
    setTimeout(() => extraNetworksApplyFilter[page] && extraNetworksApplyFilter[page](true), 1);
}

/** Move the controls of each page behind the names of the tabs, where they outlive the page, and connect its search. */
function setupExtraNetworksForTab(tab) {
    const tabs = gradioApp().querySelector(`#${tab}_extra_tabs`);
    const controls = document.createElement("div");
    controls.className = "extra-networks-controls-div";
    tabs.querySelector(":scope > .tab-nav").append(controls);
    for (const {id} of tabs.querySelectorAll(`:scope > [id^="${tab}_"]`)) {
        const search = gradioApp().getElementById(`${id}_extra_search`);
        if (!search) continue;
        const filter = () => {
            for (const card of tabs.querySelectorAll("div.card")) {
                const terms = [...card.querySelectorAll(".search_terms, .description")].map((term) => term.textContent);
                card.classList.toggle("hidden", !terms.join(" ").toLowerCase().includes(search.value.toLowerCase()));
            }
        };
        search.addEventListener("input", filter);
        extraNetworksApplyFilter[id] = filter;
        extraNetworksApplySort[id] = () => {};
        const own = gradioApp().getElementById(`${id}_controls`);
        controls.append(own);
        own.style.display = "";
    }
}

// The program's scripts wait for gradio to have built the page.
const builder = new MutationObserver(() => {
    if (!gradioApp().querySelector("#txt2img_prompt") || !gradioApp().querySelector("#txt2img_extra_tabs > .tab-nav")) return;
    builder.disconnect();
    setupExtraNetworksForTab("txt2img");
});
document.addEventListener("DOMContentLoaded", () => builder.observe(document.body, {childList: true, subtree: true}));
