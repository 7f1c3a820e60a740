"""Tags of Dagster runs, for the code that launches runs and the code that reads them."""

ARRIVAL = "throughline/arrival"  # the request of an arrivals sensor that a run ingests, and the attempt
AS_OF = "throughline/as_of"  # the instant up to which the run may know anything
CODE = "throughline/code"  # fingerprint of the code that a run executes
CAUSE = "throughline/cause"  # why a retraining was requested
CLOCK = "throughline/data_clock"  # what the data clock showed then
LATE_ROWS = "throughline/late_rows"  # the source versions whose late rows a run builds, the same for all attempts
REQUEST = "throughline/request"  # a client's launch, to find its run when the response was lost
RETRAIN = "throughline/retrain"  # the use case that is retrained
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"  # inclusive
SUBMITTER = "throughline/submitter"  # the user whose command launched it; runs launched by the platform have none
WORKER = "throughline/worker"  # process id and start time (Unix seconds) of the process that executes a run
WINDOW = "throughline/window"  # the verdict that caused it, the same for all attempts
