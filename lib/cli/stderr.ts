// What is told on stderr while a command works: lines for a person, or, with --json-progress, one JSON object a line.
let isJson = false;

/** From now on, and until the process ends, it is told in JSON. */
export function tellInJson(): void {
    isJson = true;
}

/** Whether progress is for a program. */
export function tellsInJson(): boolean {
    return isJson;
}

/**
 * Tells something.
 * @param text the line for a person
 * @param event the same for a program; what isn't finite is null there
 */
export function tell(text: string, event: Record<string, unknown>): void {
    process.stderr.write(`${isJson ? JSON.stringify(event) : text}\n`);
}
