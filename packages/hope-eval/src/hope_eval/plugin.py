"""Makes `hope` known to the command `lm_eval`, which has no plug-ins of its own.

`hope_eval_plugin.pth`, installed beside this package, imports this module when Python starts as `lm_eval`, and
then only. The model itself is imported when it is asked for.
"""

import lm_eval.models  # noqa: F401 (fills the registry, which asks for it only while empty)
from lm_eval.api.registry import model_registry

if "hope" not in model_registry:
    model_registry.register("hope", target="hope_eval.harness:HopeLM")
