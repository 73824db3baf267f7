"""What the server measures of its work, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class BatchMetrics:
    """The queue, the batches and the tokens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.texts = Gauge("regard_queue_texts", "Inputs that wait.", registry=registry)
        self.characters = Gauge("regard_queue_characters", "Their characters.", registry=registry)
        self.batches = Histogram(
            "regard_batch_size", "Inputs computed together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.tokens = Counter("regard_tokens_total", "Tokens read and written.", ("model", "side"), registry=registry)
