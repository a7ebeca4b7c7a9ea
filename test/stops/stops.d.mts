/** See stops.mjs. */
export declare function stopRuns(options: {
    model: string;
    args: string[];
    kill?: number;
    interrupt?: number;
    seed?: number;
    onRun?: () => void;
}): Promise<{ failures: string[]; milliseconds: number; endings: number[]; moments: Record<string, number> }>;
