"""The stack panel: the LoRAs of a prompt as rows with sliders, for any page that has a prompt in it.

The browser's half is `<lora-stack>`, plain ES modules in `web/`. A page mounts it so:

    <script type="module" src="…/web/HASH/stack.js"></script>
    <lora-stack base="…/lora-runtime" for="#prompt textarea"></lora-stack>

`for` is a CSS selector of the prompt's text area, which is the only state: rows show what stands there, and a slider
writes there. `base` is where the host answers, with the functions below: texts in, tables out that JSON can hold. Spans
are in UTF-16 code units, as a text area counts.

    POST base/tags      {prompt}                       tags(…): a row for each tag, and what there is to say
    POST base/edit      {prompt, tag, field, value}    edit(…): one text and the span that it replaces, or an error
    POST base/complete  {prompt, cursor}               complete(…): what may stand at the cursor
    GET  base/web       –                              {"hash": web_hash()}, where the page cannot know it
    GET  base/web/HASH/NAME                            web_file(HASH, NAME): may be kept for ever

With the attribute `sets` there is a button for named sets, and `base` has three addresses more: see `panel/sets.py`.

A host gives a `Library`: where files, their pictures and fits come from. `CatalogLibrary` is that of a `LoraCatalog`;
`lora_runtime.blocks.blocks_in` gives the blocks of a model.
"""

from lora_runtime.panel.changes import edit
from lora_runtime.panel.completion import complete
from lora_runtime.panel.library import CatalogLibrary, Library, PanelFile
from lora_runtime.panel.rows import tags
from lora_runtime.panel.served import web_file, web_hash

__all__ = ["CatalogLibrary", "Library", "PanelFile", "complete", "edit", "tags", "web_file", "web_hash"]
