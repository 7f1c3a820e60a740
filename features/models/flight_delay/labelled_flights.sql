-- The spine: one row per published flight, with what a request would say and, once known, whether it arrived late.
-- The two ends of a prediction meet here: training rows and the outcomes of live predictions.
select
  schedules.flight_id,
  schedules.origin,
  schedules.carrier,
  schedules.dest,
  schedules.tailnum,
  schedules.flight,
  schedules.scheduled_departure,
  schedules.scheduled_arrival,
  schedules.scheduled_departure - make_dt_interval(0, 0, 0, {{ var('lead_seconds') }}) as prediction_time,
  if(arrivals.arr_delay > 15, 1, if(arrivals.arr_delay is null, null, 0)) as label,
  arrivals.available_at as label_available_at,
  schedules.event_time,
  schedules.available_at,
  '{{ invocation_id }}' as ingestion_run_id
from {{ pinned('flight_delay_raw', 'flight_schedules') }} as schedules
left join (
  select flight_id, arr_delay, available_at
  from {{ pinned('flight_delay_raw', 'flight_arrivals') }}
  where available_at <= {{ as_of() }}
) as arrivals using (flight_id)
where schedules.available_at <= {{ as_of() }}
