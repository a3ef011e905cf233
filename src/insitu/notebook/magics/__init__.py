"""The line magics: `%modules %source %cache %sites %run %lens %patch %attention %jobs`."""
