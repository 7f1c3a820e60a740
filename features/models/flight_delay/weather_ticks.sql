-- The newest observation at an origin, with recent changes. Doubled local hours (autumn) are two hours in UTC.
{{ config(meta={'seen_within_hours': 12}) }}
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
recent as (
  select
    *,
    min(visib) over (partition by origin order by hour range between 2 preceding and current row) as visib_3h,
    last_value(pressure) ignore nulls over (
      partition by origin order by hour range between 11 preceding and current row
    ) as pressure_12h,
    last_value(pressure) ignore nulls over (
      partition by origin order by hour range between 11 preceding and 3 preceding
    ) as pressure_before,
    min(visib) over (partition by hour) as visib_nearby
  from newest
),
ticks as (
  {{ due_ticks('recent') }}
)
select
  {{ tick_columns('origin') }},
  temp as weather_temp,
  dewp as weather_dewpoint,
  humid as weather_humidity,
  wind_speed as weather_wind_speed,
  if(wind_speed = 0, 0, wind_speed * cos(radians(wind_dir))) as weather_wind_north,
  if(wind_speed = 0, 0, wind_speed * sin(radians(wind_dir))) as weather_wind_east,
  precip as weather_precipitation,
  pressure as weather_pressure,
  pressure_12h as weather_pressure_12h,
  pressure_12h - pressure_before as weather_pressure_change,
  visib as weather_visibility,
  visib_3h as weather_visibility_3h,
  visib_nearby as weather_visibility_nearby
from ticks
