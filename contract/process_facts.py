"""What a process tells about itself over its internal API server, and nowhere else: names, and what stands under them.

name       in the engine process                                        in a process with a cache client
---------  -----------------------------------------------------------  ------------------------------------------
settings   every setting with its value now, secrets masked             those of its server, and the client's own
meta       what is known of the model; None until the engine is ready   what the client has registered
inference  the inference engines' workers; {} without one               {}
steering   switches, backends, chunk statistics; None until ready       refused: 501
lookup     who asks for prefixes, who answers                           the same
kv_layers  the KV tensors of the worker that registered first, or None  those of the client's own, or None
"""

SETTINGS = "settings"
META = "meta"
INFERENCE = "inference"
STEERING = "steering"
LOOKUP = "lookup"
KV_LAYERS = "kv_layers"
