-- A carrier's flights from one origin: how they have arrived, and which are late or overdue now.
{{ config(meta={'seen_within_hours': 172}) }}
with events as (
  select origin, carrier, available_at, arr_delay
  from {{ pinned('flight_delay_raw', 'flight_arrivals') }}
  where {{ seen_within() }}
),
{{ plans_of_the_entity(ticks=4) }},
{{ feature_grid('events', {'delay': 'arr_delay'}, marks='plans') }}
select
  {{ tick_columns() }},
  {{ grid_columns() }},
  late_so_far_4h as station_late_so_far_4h,
  overdue_share_4h as station_overdue_share_4h
from ticks left join plans using (origin, carrier, hour)
