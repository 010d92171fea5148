"""What the dashboard shows: titles, units and PromQL, row by row. dashboard.py draws it.

`NS`, `QUEUE` and the like are the label matchers of the dashboard's variables. Quantiles are of buckets summed over
all pods; counters are looked at with `$__rate_interval`, so that a panel is right for any scrape interval and zoom.
"""

from dataclasses import dataclass

PLACE = 'cluster=~"$cluster", namespace=~"$namespace"'
# the pods of the Deployment, as in files/alerts.yaml
OF_RELEASE = f'{PLACE}, pod=~"($release)-[a-z0-9]+(-[a-z0-9]+)?"'
NS = f'{OF_RELEASE}, pod=~"$pod"'
CONTAINER = f'{NS}, container="worker"'
RECORDED = f'{PLACE}, release=~"$release", queue=~"$queue"'
QUEUE = f'{NS}, queue=~"$queue"'
DEPLOYMENT = f'{NS}, deployment=~"$deployment"'
EITHER = f'{QUEUE}, deployment=~"$deployment|none"'
RATE = "[$__rate_interval]"
FINISHED = "answered|refused|expired|attempts_exhausted|faulted"
FAILED = "expired|attempts_exhausted|faulted"
ENDED = f'{QUEUE}, outcome=~"{FINISHED}"'
# with several queues KEDA reports their sum as one more metric
KEDA_SCALER = 'scaledObject=~"$release", metric!="composite-metric"'
HPA = f'{PLACE}, horizontalpodautoscaler=~"(keda-hpa-)?($release)"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """One big number. `steps` are colours from a value upwards; `without` is shown where there is no data."""

    title: str
    description: str
    unit: str
    expression: str
    steps: tuple[tuple[str, float | None], ...]
    decimals: int | None = None
    without: str = "none"


@dataclass(frozen=True, slots=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One graph. `warn_below` paints what lies below that value red."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    stacked: bool = False
    maximum: float | None = None
    warn_below: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    title: str
    panels: tuple[Panel, ...]
    columns: int = 3


def by(labels: str, expression: str) -> str:
    return f"sum by ({labels}) ({expression})"


def of_keda(metric: str, range_: str = "") -> str:
    """KEDA's own label `namespace` is called exported_namespace unless the scrape honours labels."""
    matchers = f'cluster=~"$cluster", {KEDA_SCALER}'
    honoured = f'{metric}{{{matchers}, namespace=~"$namespace", exported_namespace=""}}{range_}'
    renamed = f'{metric}{{{matchers}, exported_namespace=~"$namespace", exported_namespace!=""}}{range_}'
    return f"rate({honoured}) or rate({renamed})" if range_ else f"{honoured} or {renamed}"


def per_minute(metric: str, matchers: str) -> str:
    return f"rate(aoai_worker_{metric}{{{matchers}}}{RATE}) * 60"


def quantiles(metric: str, matchers: str, label: str | None = None) -> tuple[Query, ...]:
    """The median, and the 95th and 99th percentile, for each value of the label."""
    labels = f"le, {label}" if label else "le"
    legend = f" {{{{{label}}}}}" if label else ""
    buckets = f"sum by ({labels}) (rate(aoai_worker_{metric}_bucket{{{matchers}}}{RATE}))"
    return tuple(
        Query(f"histogram_quantile(0.{digits}, {buckets})", f"p{digits}{legend}") for digits in ("50", "95", "99")
    )


STATS = (
    Stat(
        title="Throughput per minute",
        description="Jobs that finished: answered, refused or failed.",
        unit="short",
        expression=f"sum({per_minute('jobs_total', ENDED)})",
        steps=(("blue", None),),
        decimals=0,
    ),
    Stat(
        title="Success ratio",
        description="Jobs with an answer or a refusal of the service, of all that finished. The objective is 99 %.",
        unit="percentunit",
        expression=(
            f'1 - sum(rate(aoai_worker_jobs_total{{{QUEUE}, outcome=~"{FAILED}"}}{RATE})'
            f" or rate(aoai_worker_dead_letters_swept_total{{{QUEUE}}}{RATE}))"
            f' / sum(rate(aoai_worker_jobs_total{{{QUEUE}, outcome=~"{FINISHED}"}}{RATE})'
            f" or rate(aoai_worker_dead_letters_swept_total{{{QUEUE}}}{RATE}))"
        ),
        steps=(("red", None), ("orange", 0.95), ("green", 0.99)),
        decimals=2,
        without="no jobs",
    ),
    Stat(
        title="Backlog age",
        description="Age of the message received last; 0 when the queue was found empty.",
        unit="s",
        expression=f"max(aoai_worker_backlog_age_seconds{{{QUEUE}}})",
        steps=(("green", None), ("orange", 3_600), ("red", 14_400)),
        without="no pods",
    ),
    Stat(
        title="In flight",
        description="Jobs under way whose result is not written yet, of all pods.",
        unit="short",
        expression=f"sum(aoai_worker_jobs_in_flight{{{NS}}})",
        steps=(("blue", None),),
        decimals=0,
        without="no pods",
    ),
    Stat(
        title="Token expires in",
        description="The token that expires first, of all pods and scopes.",
        unit="dtdurations",
        expression=f"min(aoai_worker_token_expiry_timestamp_seconds{{{NS}}} - time())",
        steps=(("red", None), ("orange", 600), ("green", 1_200)),
        decimals=0,
        without="no token",
    ),
    Stat(
        title="429 share",
        description="Calls that the service answered with 429, of all calls.",
        unit="percentunit",
        expression=(
            f'sum(rate(aoai_worker_calls_total{{{DEPLOYMENT}, status="429"}}{RATE}))'
            f" / sum(rate(aoai_worker_calls_total{{{DEPLOYMENT}}}{RATE}))"
        ),
        steps=(("green", None), ("orange", 0.02), ("red", 0.1)),
        decimals=1,
        without="no calls",
    ),
)

ROWS = (
    Row(
        title="Throughput and tokens",
        columns=4,
        panels=(
            Panel(
                title="Jobs by outcome per minute",
                description="Deliveries that ended, by outcome. handed_back and lock_lost come again.",
                unit="short",
                queries=(Query(by("outcome", per_minute("jobs_total", EITHER)) + " > 0", "{{outcome}}"),),
                stacked=True,
            ),
            Panel(
                title="Tokens per minute",
                description="Tokens of answers as the service counts them; cached ones are part of the prompt's.",
                unit="short",
                queries=(Query(by("kind", per_minute("tokens_total", DEPLOYMENT)), "{{kind}}"),),
            ),
            Panel(
                title="Cost per hour",
                description="Of the tokens of all calls, by AOAI_WORKER_PRICES; empty where that is not set.",
                unit="short",
                queries=(Query(f"{by('model', per_minute('cost_total', NS))} * 60", "{{model}}"),),
                stacked=True,
            ),
            Panel(
                title="Unfit answers per minute",
                description="Answers that are not the JSON which their job asked for, or not of its schema.",
                unit="short",
                queries=(
                    Query(
                        by("deployment, code", per_minute("unfit_answers_total", DEPLOYMENT)),
                        "{{deployment}} {{code}}",
                    ),
                ),
            ),
            Panel(
                title="In flight and slots",
                description="Jobs under way, deliveries not settled yet, and the slots of all pods.",
                unit="short",
                queries=(
                    Query(f"sum(aoai_worker_jobs_in_flight{{{NS}}})", "in flight"),
                    Query(f"sum(aoai_worker_deliveries_held{{{NS}}})", "held"),
                    Query(f"sum(aoai_worker_slots{{{NS}}})", "slots"),
                ),
            ),
            Panel(
                title="Messages received per minute",
                description="All messages received, and those of them that had been delivered before.",
                unit="short",
                queries=(
                    Query(by("queue", per_minute("jobs_received_total", QUEUE)), "{{queue}}"),
                    Query(by("queue", per_minute("jobs_redelivered_total", QUEUE)), "{{queue}} redelivered"),
                ),
            ),
            Panel(
                title="Error budget burn",
                description=(
                    "How many times faster than an objective of 99 % over 30 days allows jobs fail, by the rules' "
                    "own windows. 1 uses the budget up in 30 days; 14.4 over an hour alerts."
                ),
                unit="short",
                queries=tuple(
                    Query(
                        f"max by (queue) (aoai_worker:jobs_failed:ratio_rate{window}{{{RECORDED}}}) / 0.01",
                        f"{{{{queue}}}} {window}",
                    )
                    for window in ("1h", "6h", "3d")
                ),
            ),
            Panel(
                title="Bytes in flight",
                description="Bytes of jobs and unwritten answers; at the limit nothing more is received.",
                unit="bytes",
                queries=(
                    Query(f"sum(aoai_worker_in_flight_bytes{{{NS}}})", "in flight"),
                    Query(f"sum(aoai_worker_in_flight_bytes_limit{{{NS}}})", "limit"),
                ),
            ),
        ),
    ),
    Row(
        title="Queues of models",
        panels=(
            Panel(
                title="Backlog age by queue",
                description="Age of the message received last, by queue; 0 when the queue was found empty.",
                unit="s",
                queries=(Query(f"max by (queue) (aoai_worker_backlog_age_seconds{{{QUEUE}}})", "{{queue}}"),),
            ),
            Panel(
                title="Messages by queue",
                description="Active messages as KEDA counts them: those that wait and those that pods hold.",
                unit="short",
                queries=(Query(f"max by (metric) ({of_keda('keda_scaler_metrics_value')})", "{{metric}}"),),
            ),
            Panel(
                title="Jobs finished per minute by queue",
                description="Answered, refused or failed. With several models none finishes in the entry queue.",
                unit="short",
                queries=(Query(by("queue", per_minute("jobs_total", ENDED)), "{{queue}}"),),
            ),
            Panel(
                title="Jobs sorted per minute",
                description="Jobs moved from the entry queue to the queue of their model.",
                unit="short",
                queries=(Query(by("model", per_minute("jobs_sorted_total", NS)), "{{model}}"),),
            ),
            Panel(
                title="Sort time",
                description="From receiving a batch from the entry queue until it is sent on and completed there.",
                unit="s",
                queries=quantiles("sort_seconds", NS),
            ),
            Panel(
                title="Batches not taken",
                description="Within an hour: batches that a queue did not take, full, missing or without a role.",
                unit="short",
                queries=(
                    Query(by("queue", f"increase(aoai_worker_sort_failures_total{{{QUEUE}}}[1h])"), "{{queue}}"),
                ),
            ),
        ),
    ),
    Row(
        title="Latency",
        panels=(
            Panel(
                title="Queue wait",
                description="From enqueuing to the start of a delivery's processing.",
                unit="s",
                queries=quantiles("queue_wait_seconds", QUEUE, "queue"),
            ),
            Panel(
                title="Call",
                description="Seconds of a call to Azure OpenAI, failed ones included.",
                unit="s",
                queries=quantiles("call_seconds", DEPLOYMENT, "deployment"),
            ),
            Panel(
                title="End to end",
                description="From enqueuing to the outcome.",
                unit="s",
                queries=quantiles("job_seconds", QUEUE, "queue"),
            ),
            Panel(
                title="Result write time",
                description="Of one result, to the results queue or to Blob, attempts that failed included.",
                unit="s",
                queries=quantiles("result_write_seconds", NS),
            ),
            Panel(
                title="Time to first token",
                description="Of calls that stream; others do not tell.",
                unit="s",
                queries=quantiles("first_token_seconds", DEPLOYMENT, "deployment"),
            ),
        ),
    ),
    Row(
        title="Quota and gates by deployment",
        columns=4,
        panels=(
            Panel(
                title="Gate open",
                description="Share of the pods whose gate to the deployment is open.",
                unit="percentunit",
                queries=(Query(f"avg by (deployment) (aoai_worker_gate_open{{{DEPLOYMENT}}})", "{{deployment}}"),),
                maximum=1,
            ),
            Panel(
                title="Gate closed",
                description="Seconds per second for which gates were closed, on average over the pods, by reason.",
                unit="percentunit",
                queries=(
                    Query(
                        "avg by (deployment, reason) "
                        f"(rate(aoai_worker_gate_closed_seconds_total{{{DEPLOYMENT}}}{RATE}))",
                        "{{deployment}} {{reason}}",
                    ),
                ),
            ),
            Panel(
                title="Calls by status per minute",
                description="HTTP status of the service; none where there was no answer.",
                unit="short",
                queries=(
                    Query(
                        by("deployment, status", per_minute("calls_total", DEPLOYMENT)) + " > 0",
                        "{{deployment}} {{status}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                title="Concurrency",
                description="Calls under way, and how many the adaptive limit allows, of all pods.",
                unit="short",
                queries=(
                    Query(by("deployment", f"aoai_worker_calls_in_flight{{{DEPLOYMENT}}}"), "{{deployment}} calls"),
                    Query(
                        by("deployment", f"aoai_worker_concurrency_limit{{{DEPLOYMENT}}}"), "{{deployment}} limit"
                    ),
                ),
            ),
            Panel(
                title="Tokens left in the minute",
                description="As the service's headers said last; and the budget of all pods, where there is one.",
                unit="short",
                queries=(
                    Query(
                        f"min by (deployment) (aoai_worker_quota_remaining_tokens{{{DEPLOYMENT}}})",
                        "{{deployment}} left",
                    ),
                    Query(
                        by("deployment", f"aoai_worker_budget_tokens_per_minute{{{DEPLOYMENT}}}"),
                        "{{deployment}} budget",
                    ),
                ),
            ),
            Panel(
                title="Requests left in the minute",
                description="As the service's headers said last; and the budget of all pods, where there is one.",
                unit="short",
                queries=(
                    Query(
                        f"min by (deployment) (aoai_worker_quota_remaining_requests{{{DEPLOYMENT}}})",
                        "{{deployment}} left",
                    ),
                    Query(
                        by("deployment", f"aoai_worker_budget_requests_per_minute{{{DEPLOYMENT}}}"),
                        "{{deployment}} budget",
                    ),
                ),
            ),
            Panel(
                title="Throttles per minute",
                description="Calls answered 429: quota (ours is spent), capacity (theirs is), cut, provisioned.",
                unit="short",
                queries=(
                    Query(
                        by("deployment, kind", per_minute("throttles_total", DEPLOYMENT)), "{{deployment}} {{kind}}"
                    ),
                ),
                stacked=True,
            ),
            Panel(
                title="Jobs parked",
                description="Jobs that wait for a deployment whose gate is closed or whose limit is reached.",
                unit="short",
                queries=(Query(by("deployment", f"aoai_worker_jobs_parked{{{DEPLOYMENT}}}"), "{{deployment}}"),),
            ),
        ),
    ),
    Row(
        title="Identity",
        columns=4,
        panels=(
            Panel(
                title="Token refreshes",
                description="Token requests within an hour, by outcome.",
                unit="short",
                queries=(
                    Query(
                        by("scope, outcome", f"increase(aoai_worker_token_refreshes_total{{{NS}}}[1h])"),
                        "{{scope}} {{outcome}}",
                    ),
                    Query(
                        by("scope, code", f"increase(aoai_worker_token_refresh_failures_total{{{NS}}}[1h])"),
                        "{{scope}} {{code}}",
                    ),
                ),
            ),
            Panel(
                title="Refresh duration",
                description="Mean seconds of the token requests that succeeded since the pods' start.",
                unit="s",
                queries=(
                    Query(
                        by("scope", f"aoai_worker_token_refresh_seconds_sum{{{NS}}}")
                        + " / "
                        + by("scope", f"aoai_worker_token_refresh_seconds_count{{{NS}}}"),
                        "{{scope}}",
                    ),
                ),
            ),
            Panel(
                title="Token valid for",
                description="Of the token that expires first. Usually refreshed when half its life is left.",
                unit="dtdurations",
                queries=(
                    Query(
                        f"min by (scope) (aoai_worker_token_expiry_timestamp_seconds{{{NS}}}) - time()", "{{scope}}"
                    ),
                ),
                warn_below=600,
            ),
            Panel(
                title="Age of the projected token",
                description="Of the file that the kubelet writes anew, usually when 80 % of an hour are over.",
                unit="dtdurations",
                queries=(Query(f"max(aoai_worker_projected_token_age_seconds{{{NS}}})", "oldest"),),
            ),
        ),
    ),
    Row(
        title="Service Bus",
        columns=4,
        panels=(
            Panel(
                title="Settlements per minute",
                description="By what was asked and whether the broker confirmed; what it did not may come again.",
                unit="short",
                queries=(
                    Query(
                        by("settlement, confirmed", per_minute("settlements_total", NS)) + " > 0",
                        "{{settlement}} confirmed: {{confirmed}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                title="Lock renewals per minute",
                description="Locks renewed, not renewed by a failed request, and lost.",
                unit="short",
                queries=(
                    Query(f"sum({per_minute('lock_renewals_total', NS)})", "renewed"),
                    Query(f"sum({per_minute('lock_renewal_failures_total', NS)})", "failed"),
                    Query(f"sum({per_minute('locks_lost_total', NS)})", "lost"),
                ),
            ),
            Panel(
                title="Hand-backs per minute",
                description="Deliveries given back to the queue, by reason.",
                unit="short",
                queries=(Query(by("reason", per_minute("jobs_handed_back_total", QUEUE)), "{{reason}}"),),
            ),
            Panel(
                title="Receivers restarted",
                description="Receivers retired after an error, within an hour.",
                unit="short",
                queries=(
                    Query(
                        by("queue", f"increase(aoai_worker_receiver_restarts_total{{{QUEUE}}}[1h])"), "{{queue}}"
                    ),
                ),
            ),
            Panel(
                title="Dead letters that wait for a person",
                description="What the last sweep left, by queue: aoai-worker dlq list. It looks at 10,000 at most; "
                "without a pod nobody looks.",
                unit="short",
                queries=(Query(f"max by (queue) (aoai_worker_dead_letters{{{QUEUE}}})", "{{queue}}"),),
            ),
            Panel(
                title="New dead letters",
                description="Messages that are no jobs, and what the broker gave up and was swept, within an hour.",
                unit="short",
                queries=(
                    Query(
                        by("queue", f'increase(aoai_worker_jobs_total{{{QUEUE}, outcome="dead_lettered"}}[1h])'),
                        "{{queue}} no job",
                    ),
                    Query(
                        by("queue, reason", f"increase(aoai_worker_dead_letters_swept_total{{{QUEUE}}}[1h])"),
                        "{{queue}} swept: {{reason}}",
                    ),
                ),
            ),
            Panel(
                title="Paid twice, suspects, faults",
                description="Within an hour: answers that had been written before, jobs run apart, faults of ours.",
                unit="short",
                queries=(
                    Query(f"sum(increase(aoai_worker_jobs_paid_twice_total{{{QUEUE}}}[1h]))", "paid twice"),
                    Query(f"sum(increase(aoai_worker_jobs_suspect_total{{{QUEUE}}}[1h]))", "suspects"),
                    Query(f"sum(increase(aoai_worker_faults_total{{{NS}}}[1h]))", "faults"),
                ),
            ),
        ),
    ),
    Row(
        title="Pods and KEDA",
        panels=(
            Panel(
                title="Pods",
                description="Pods that are scraped, by version, and the autoscaler's current and greatest number.",
                unit="short",
                queries=(
                    Query(f"count by (version) (aoai_worker_build_info{{{NS}}})", "{{version}}"),
                    Query(f"sum(kube_horizontalpodautoscaler_status_current_replicas{{{HPA}}})", "current"),
                    Query(f"sum(kube_horizontalpodautoscaler_spec_max_replicas{{{HPA}}})", "maximum"),
                ),
            ),
            Panel(
                title="Pods that take no jobs",
                description="By reason, as /readyz tells it. A pod may have several.",
                unit="short",
                queries=(Query(by("reason", f"aoai_worker_intake_closed{{{NS}}}"), "{{reason}}"),),
                stacked=True,
            ),
            Panel(
                title="Restarts",
                description="Restarts of the worker's container within an hour, by pod.",
                unit="short",
                queries=(
                    Query(
                        by("pod", f"increase(kube_pod_container_status_restarts_total{{{CONTAINER}}}[1h])"),
                        "{{pod}}",
                    ),
                ),
            ),
            Panel(
                title="CPU",
                description="Cores that a worker uses, by pod. One event loop uses one core at most.",
                unit="short",
                queries=(
                    Query(by("pod", f"rate(container_cpu_usage_seconds_total{{{CONTAINER}}}{RATE})"), "{{pod}}"),
                ),
            ),
            Panel(
                title="Memory",
                description="Memory that the kubelet counts against the container's limit, by pod.",
                unit="bytes",
                queries=(Query(by("pod", f"container_memory_working_set_bytes{{{CONTAINER}}}"), "{{pod}}"),),
            ),
            Panel(
                title="Messages and errors as KEDA sees them",
                description="Active messages of all queues, by which KEDA scales, and its errors per minute.",
                unit="short",
                queries=(
                    Query(f"sum(max by (metric) ({of_keda('keda_scaler_metrics_value')}))", "messages"),
                    Query(f"sum({of_keda('keda_scaler_detail_errors_total', RATE)}) * 60", "errors/min"),
                ),
            ),
        ),
    ),
)
