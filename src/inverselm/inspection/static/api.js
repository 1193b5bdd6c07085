// The server's few calls. Errors carry the server's own words.

export class ApiError extends Error {}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("No answer: is `inverselm inspect` still running?");
  }
  if (response.ok) return response;
  let text = `The server answered with status ${response.status}.`;
  try {
    text = (await response.json()).error || text;
  } catch { /* not JSON */ }
  throw new ApiError(text);
}

const json = (body, signal) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
});

export const getMeta = async () => (await call("/api/meta")).json();
export const score = async (body, signal) => (await call("/api/score", json(body, signal))).json();
export const getRow = async (index, signal) => (await call(`/api/rows/${index}`, { signal })).json();
export const getRows = async (query) => (await call(`/api/rows?${new URLSearchParams(query)}`)).json();
export const getJob = async () => (await call("/api/job")).json();
export const setJob = async (action) => (await call("/api/job", json({ action }))).json();

/** Ask for a file of what is shown, and hand it to the browser to save. */
export async function save(body, name) {
  const response = await call("/api/export", json(body));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
