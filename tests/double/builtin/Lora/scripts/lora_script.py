"""What the built-in Lora extension registers, and nothing that it does."""

import gradio as gr
import networks
from modules import extra_networks, script_callbacks, shared, ui_extra_networks


class Network(extra_networks.ExtraNetwork):
    def __init__(self):
        super().__init__("lora")

    def activate(self, p, params_list):
        networks.calls.append(("activate", [params.items for params in params_list]))

    def deactivate(self, p):
        networks.calls.append(("deactivate", []))


def before_ui():
    ui_extra_networks.register_page(ui_extra_networks.ExtraNetworksPage("Lora"))
    network = Network()
    extra_networks.register_extra_network(network)
    extra_networks.register_extra_network_alias(network, "lyco")


def app_started(_, app):
    app.add_api_route("/sdapi/v1/loras", lambda: "of the built-in", methods=["GET"])
    app.add_api_route("/sdapi/v1/refresh-loras", lambda: "of the built-in", methods=["POST"])


def pasted(_, fields):
    fields["Prompt"] = "mended by the built-in"


script_callbacks.on_model_loaded(lambda model: networks.calls.append(("model_loaded", [])))
script_callbacks.on_script_unloaded(lambda: networks.calls.append(("script_unloaded", [])))
script_callbacks.on_before_ui(before_ui)
script_callbacks.on_infotext_pasted(pasted)
script_callbacks.on_app_started(app_started)

option = shared.OptionInfo
shared.options_templates.update(
    shared.options_section(
        ("extra_networks", "Extra Networks"),
        {
            "sd_lora": option("None", "the built-in's", gr.Dropdown, lambda: {"choices": ["None"]}),
            "lora_preferred_name": option("Alias from file", "the built-in's"),
            "lora_add_hashes_to_infotext": option(True, "the built-in's"),
            "lora_bundled_ti_to_infotext": option(True, "the built-in's"),
            "lora_show_all": option(False, "the built-in's"),
            "lora_hide_unknown_for_versions": option([], "the built-in's"),
            "lora_in_memory_limit": option(0, "the built-in's"),
            "lora_not_found_warning_console": option(False, "the built-in's"),
            "lora_not_found_gradio_warning": option(False, "the built-in's"),
        },
    )
)
shared.options_templates.update(
    shared.options_section(("compatibility", "Compatibility"), {"lora_functional": option(False, "the built-in's")})
)
shared.opts.onchange("lora_in_memory_limit", lambda: networks.calls.append(("purge", [])))
