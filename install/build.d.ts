export { BuildError, type BuildErrorCode } from './once.js';

/** Where the addon is once it is built. */
export declare const addonPath: string;

/**
 * Builds the addon unless it is up to date. `log` receives the progress, a line at a time; without it, stderr does.
 * @throws BuildError with what the user can do
 */
export declare function ensureBuilt(options?: { log?: (line: string) => void; force?: boolean }): Promise<void>;
