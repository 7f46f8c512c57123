"""What the task `choice` needs of test documents; without torch, so that a pipeline can check it before it trains."""

PREFIX, CONTINUATION, DOCUMENTS = 129, 16, 4  # tokens before the choice and of each choice; choices
TOKENS = PREFIX - 1 + CONTINUATION  # of a document
