"""The methods that a command runs when --methods is not given."""

METHODS = (
    "end_to_end()",
    "end_to_end() with recompute",
    "greedy(aux=Head(convs=0, linears=1))",
    "greedy()",
    "contsup()",
    "auglocal()",
    "backlink()",
    "interlocking(wise=2)",
    "BackLink + ContSup + AugLocal's heads: Rule(credit=BackwardLinks(), aux=SampledLayers(), "
    "context=ContextSupply(input=True, previous=1))",
)

# Methods that need no images, and therefore also train networks of tokens.
TEXT_METHODS = (
    "end_to_end()",
    "end_to_end() with recompute",
    "greedy(aux=Head(convs=0, linears=1))",
    "greedy()",
    "backlink()",
    "interlocking(wise=2)",
)
