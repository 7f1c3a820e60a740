-- The newest observation at an origin. Doubled local hours (autumn) are two different hours in UTC.
{{ config(meta={'seen_within_hours': 0}) }}
with observations as (
  select *, {{ tick_hour('available_at') }} as hour
  from {{ pinned('flight_delay_raw', 'weather') }}
  where {{ seen_within() }} and available_at < {{ as_of() }}
),
newest as (
  select * except (day)
  from observations
  qualify row_number() over (partition by origin, hour order by available_at desc, event_time desc) = 1
),
ticks as (
  {{ due_ticks('newest') }}
)
select
  {{ tick_columns('origin') }},
  temp as weather_temp,
  dewp as weather_dewpoint,
  humid as weather_humidity,
  wind_speed as weather_wind_speed,
  precip as weather_precipitation,
  pressure as weather_pressure,
  visib as weather_visibility
from ticks
