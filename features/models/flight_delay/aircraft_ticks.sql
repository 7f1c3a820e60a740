-- The aircraft itself: a late one is often late again the same day.
{{ config(meta={'seen_within_hours': 168}) }}
with events as (
  select tailnum, available_at, dep_delay, if(dep_delay > 15, 1, 0) as late
  from {{ pinned('flight_delay_raw', 'flight_departures') }}
  where {{ seen_within() }}
),
{{ window_ticks('tailnum', 'events', {'delay': 'dep_delay', 'late': 'late'}, [12, 168]) }}
select
  {{ tick_columns('tailnum') }},
  delay_12h / nullif(n_12h, 0) as aircraft_delay_12h,
  delay_168h / nullif(n_168h, 0) as aircraft_delay_168h,
  cast(n_168h as double) as aircraft_departures_168h,
  cast(planes.seats as double) as aircraft_seats,
  cast(year(event_timestamp) - planes.year_built as double) as aircraft_age_years
from ticks
left join {{ pinned('flight_delay_raw', 'planes') }} as planes using (tailnum)
