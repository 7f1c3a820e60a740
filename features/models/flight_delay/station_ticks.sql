-- A carrier's own operation at an origin: how its flights from there have arrived, and which are late or overdue now.
{{ config(meta={'seen_within_hours': 172}) }}
with events as (
  select origin, carrier, available_at, arr_delay
  from {{ pinned('flight_delay_raw', 'flight_arrivals') }}
  where {{ seen_within() }}
),
{{ planned_flights(before=0, after=4) }},
plans as (
  select
    origin,
    carrier,
    hour,
    avg(if(age < 4, if(so_far > 15, 1, 0), null)) as late_so_far_4h,
    avg(if(age < 4, if(waiting, 1, 0), null)) as overdue_share_4h
  from planned
  group by origin, carrier, hour
),
{{ feature_grid('events', {'delay': 'arr_delay'}, marks='plans') }}
select
  {{ tick_columns() }},
  {{ grid_columns() }},
  late_so_far_4h as station_late_so_far_4h,
  overdue_share_4h as station_overdue_share_4h
from ticks left join plans using (origin, carrier, hour)
