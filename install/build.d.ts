/** Where the addon is once it is built. */
export declare const addonPath: string;

export type BuildErrorCode = 'BUILD_FAILED' | 'BUILD_IMPOSSIBLE' | 'BUILD_INTERRUPTED';

/** A failure that the user can act on: its message says it all, a stack adds nothing. */
export declare class BuildError extends Error {
    readonly code: BuildErrorCode;
}

/** Builds the addon unless it is up to date. log receives progress, a line at a time; without it, stderr does. */
export declare function ensureBuilt(options?: { log?: (line: string) => void; force?: boolean }): Promise<void>;

/** What ensureBuilt does for the addon, for any folder, stamp and build. */
export declare function buildOnce(options: {
    folder: string;
    stamp: string;
    log?: (line: string) => void;
    force?: boolean;
    build(progress: { phase(text: string): void; output(line: string): void }, stopped: AbortSignal): Promise<void>;
}): Promise<void>;
