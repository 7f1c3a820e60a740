-- How flights have arrived at a destination: its weather and flow control show here first.
{{ config(meta={'seen_within_hours': 168}) }}
with events as (
  select dest, available_at, arr_delay, if(arr_delay > 15, 1, 0) as late
  from {{ pinned('flight_delay_raw', 'flight_arrivals') }}
  where {{ seen_within() }}
),
{{ window_ticks('dest', 'events', {'delay': 'arr_delay', 'late': 'late'}, [6, 24, 168]) }}
select
  {{ tick_columns('dest') }},
  delay_6h / nullif(n_6h, 0) as dest_delay_6h,
  delay_24h / nullif(n_24h, 0) as dest_delay_24h,
  late_24h / nullif(n_24h, 0) as dest_late_share_24h,
  late_168h / nullif(n_168h, 0) as dest_late_share_168h
from ticks
