"""Documents that share a row, each read as if it stood alone (`data.reset`)."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

NO_TARGET = -100  # costs nothing


def apart(inputs_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Give every document of every row a row of its own, padded at its end, where nothing reaches back from.

    Nothing of one document is then seen by the next: not by a memory, a convolution, attention or the CMS.

    Args:
        inputs_BT: tokens that are read.
        targets_BT: the token after each.
        segments_BT: which document of its row each target belongs to (`hope_data.loader.Batch.segments`), so that a
            document is read from the end-of-text before it, as evaluation reads it.

    Returns:
        Inputs and targets `[K, L]`: K documents, L tokens of the longest part that a row holds of one.
    """
    ends = torch.ones_like(segments_BT, dtype=torch.bool)
    ends[:, :-1] = segments_BT[:, 1:] != segments_BT[:, :-1]
    places = ends.flatten().nonzero().flatten() + 1
    sizes = torch.diff(places, prepend=places.new_zeros(1)).tolist()
    inputs, targets = (
        pad_sequence(list(torch.split(x_BT.flatten(), sizes)), batch_first=True, padding_value=padding)
        for x_BT, padding in ((inputs_BT, 0), (targets_BT, NO_TARGET))
    )
    return inputs, targets
