-- Arrivals of flights between two airports.
{{ config(meta={'seen_within_hours': 24}) }}
with events as (
  select origin, dest, available_at, arr_delay
  from {{ pinned('flight_delay_raw', 'flight_arrivals') }}
  where {{ seen_within() }}
),
{{ feature_grid('events', {'delay': 'arr_delay'}) }}
select
  {{ tick_columns() }},
  {{ grid_columns() }}
from ticks
