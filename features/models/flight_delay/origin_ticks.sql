-- How departures from an airport have run: the newest hours tell of weather and congestion there.
{{ config(meta={'seen_within_hours': 24}) }}
with events as (
  select origin, available_at, dep_delay, if(dep_delay > 15, 1, 0) as late
  from {{ pinned('flight_delay_raw', 'flight_departures') }}
  where {{ seen_within() }}
),
{{ window_ticks('origin', 'events', {'delay': 'dep_delay', 'late': 'late'}, [2, 6, 24]) }}
select
  {{ tick_columns('origin') }},
  cast(n_2h as double) as origin_departures_2h,
  delay_2h / nullif(n_2h, 0) as origin_delay_2h,
  late_2h / nullif(n_2h, 0) as origin_late_share_2h,
  delay_6h / nullif(n_6h, 0) as origin_delay_6h,
  late_24h / nullif(n_24h, 0) as origin_late_share_24h
from ticks
