"""The cluster file at the end of docs/sweep.md: Ray's own launcher says whether it can be read."""

from __future__ import annotations

import re

import docs_pages
import pytest
import yaml

pytest.importorskip("ray")


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_reads_the_cluster_file_of_the_docs() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (written,) = re.findall(r"^```yaml\n(.*?)^```", docs_pages.text_of("sweep.md"), re.DOTALL | re.MULTILINE)
    config = yaml.safe_load(written)
    prepared = prepare_config(config)
    validate_config(prepared)
    (nodes,) = prepared["available_node_types"].values()
    assert (nodes["min_workers"], prepared["max_workers"]) == (2, 2)
    with pytest.raises(Exception, match="head_ip"):
        prepare_config({**config, "provider": {"type": "local"}})
