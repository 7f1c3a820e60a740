-- Arrivals at a destination, which reflect its weather and flow control.
{{ config(meta={'seen_within_hours': 168}) }}
with events as (
  select dest, available_at, arr_delay, if(arr_delay > 15, 1, 0) as late
  from {{ pinned('flight_delay_raw', 'flight_arrivals') }}
  where {{ seen_within() }}
),
{{ feature_grid('events', {'delay': 'arr_delay', 'late': 'late'}) }}
select
  {{ tick_columns() }},
  {{ grid_columns() }}
from ticks
