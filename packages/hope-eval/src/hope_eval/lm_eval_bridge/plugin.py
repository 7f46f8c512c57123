"""Makes `hope` known to the command `lm_eval`, which has no plug-ins of its own.

`hope_eval_plugin.pth`, installed beside this package, imports this module when Python starts as `lm_eval`, and
then only. The model itself is imported when it is asked for. What a user of `hope` can mend is then said in one
line, with exit status 2, as by our own commands.
"""

import sys
from argparse import Namespace

import lm_eval.models  # noqa: F401 (fills the registry, which asks for it only while empty)
from lm_eval._cli import HarnessCLI
from lm_eval.api.registry import model_registry

from hope_data.errors import InputError
from hope_model.errors import InputError as ModelInputError

if "hope" not in model_registry:
    model_registry.register("hope", target="hope_eval.lm_eval_bridge.model:HopeLM")

_execute = HarnessCLI.execute


def _execute_plainly(self: HarnessCLI, args: Namespace) -> None:
    try:
        _execute(self, args)
    except (InputError, ModelInputError) as error:
        message = str(error)
    except OSError as error:
        if "hope_eval.lm_eval_bridge.model" not in sys.modules or not _of_data_set(error):
            raise
        reason = " ".join(str(error).split())[:160]
        message = (
            f"--tasks: a data set is not to be had ({reason}); fetch it once with a network and without "
            "HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, or score local rows: hope-eval zeroshot --mirror FOLDER"
        )
    else:
        return
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


def _of_data_set(error: OSError) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError) or module in ("datasets", "huggingface_hub")


HarnessCLI.execute = _execute_plainly
