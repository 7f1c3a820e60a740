-- The spine: a row when a flight is published, and one with the label when it has arrived.
-- Read for training rows and for the outcomes of live predictions.
{{ config(meta={'seen_within_hours': 0}) }}
{%- set flight = 'flight_id, origin, carrier, dest, tailnum, flight, scheduled_departure, scheduled_arrival' %}
with known as (
  select {{ flight }}, cast(null as int) as label, cast(null as timestamp) as label_available_at,
    event_time, available_at, day
  from {{ pinned('flight_delay_raw', 'flight_schedules') }}
  union all
  select {{ flight }}, if(arr_delay > 15, 1, 0) as label, available_at as label_available_at,
    event_time, available_at, day
  from {{ pinned('flight_delay_raw', 'flight_arrivals') }}
)
select
  flight_id,
  origin,
  carrier,
  dest,
  tailnum,
  flight,
  scheduled_departure,
  scheduled_arrival,
  scheduled_departure - make_dt_interval(0, 0, 0, {{ var('lead_seconds') }}) as prediction_time,
  label,
  label_available_at,
  event_time,
  available_at,
  '{{ invocation_id }}' as ingestion_run_id,
  day
from known
where {{ built_days() }} and available_at < {{ as_of() }}
