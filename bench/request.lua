-- What bench/load.py has wrk send; the request is in the environment.
wrk.method = os.getenv("LOAD_METHOD")
local body = os.getenv("LOAD_BODY")
if body ~= "" then
  wrk.body = body
  wrk.headers["Content-Type"] = "application/json"
end
