export { BuildError, type BuildErrorCode } from './once.js';

/** Where the addon is once it is built. */
export declare const addonPath: string;

/**
 * Builds the addon unless it is up to date. `log` receives the progress, a line at a time; without it, stderr does.
 * @throws BuildError with what the user can do
 */
export declare function ensureBuilt(options?: { log?: (line: string) => void; force?: boolean }): Promise<void>;

/**
 * Builds the CUDA backend for the GPUs of this computer, unless it is built, and returns its library.
 * @throws BuildError with what the user can do
 */
export declare function buildCuda(options?: { log?: (line: string) => void }): Promise<string>;

/** The library of the CUDA backend that was built here; '' if none was, or for another release of llama.cpp. */
export declare function builtCuda(): string;
