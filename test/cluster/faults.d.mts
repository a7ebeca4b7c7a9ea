/** See faults.mjs. */
export declare function breakRuns(options: {
    model: string;
    args: string[];
    runs: number;
    seed?: number;
    which?: string[];
    onRun?: () => void;
}): Promise<{ failures: string[]; struck: Record<string, number> }>;
