-- Arrivals of one flight number on other days: a schedule that is too tight is so every day.
{{ config(meta={'seen_within_hours': 336}) }}
with events as (
  select carrier, flight, origin, available_at, arr_delay, if(arr_delay > 15, 1, 0) as late
  from {{ pinned('flight_delay_raw', 'flight_arrivals') }}
  where {{ seen_within() }}
),
{{ feature_grid('events', {'delay': 'arr_delay', 'late': 'late'}) }}
select
  {{ tick_columns() }},
  {{ grid_columns() }}
from ticks
