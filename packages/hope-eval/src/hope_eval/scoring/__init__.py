"""From a checkpoint to answers: loading, likelihoods and generation, memorising and adapting while reading."""
